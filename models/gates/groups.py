"""Groups of tokens: an expert has its slots, and is balanced, in each of them for itself.

They are part of the model: which tokens are dropped then never depends on how many devices there
are. The original has one group a device.
"""

# B batch, T length, G groups, S tokens of a group.

from dataclasses import dataclass, replace

from jaxtyping import Array, Shaped

from jscale.errors import ConfigError, did_you_mean

ORDERS = ("rows", "places", "torchscale")


@dataclass(frozen=True)
class Groups:
    """How many groups there are, and in which order their tokens stand before an expert.

    A group is so many rows of the batch one after another; if there are more groups than rows, a
    part of one. In the order "places" the first tokens of all its rows come first, then the second
    ones. TorchScale has that in encoders, and rows in decoders: "torchscale".

    Raises:
        ConfigError: a number below 1, or an unknown order.
    """

    count: int = 1  # groups of a batch (of a microbatch, where gradients are accumulated)
    order: str = "rows"  # rows: row after row; places: place after place; torchscale: either

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"Groups.count must be at least 1, not {self.count}")
        if self.order not in ORDERS:
            hint = did_you_mean(self.order, ORDERS)
            raise ConfigError(f"no order {self.order!r} of a group's tokens; {hint}")

    def within(self, decodes: bool) -> "Groups":
        """The same groups, with the order that is meant in a decoder or in an encoder."""
        if self.order != "torchscale":
            return self
        return replace(self, order="rows" if decodes else "places")

    def check(self, batch: int, length: int) -> None:
        """The groups of a batch are equal.

        Raises:
            ConfigError: they are not.
        """
        rows, parts = batch % self.count == 0, self.count % max(batch, 1) == 0
        if not rows and not (parts and length % (self.count // batch) == 0):
            raise ConfigError(
                f"{self.count} groups of tokens cannot be made of {batch} rows of {length}: their"
                " number must divide the rows, or be a multiple that divides each row; to generate,"
                " which reads single rows, the choice of experts needs evaluation=None"
            )

    def fold(self, x: Shaped[Array, "B T *E"]) -> Shaped[Array, "G S *E"]:
        """Tokens by group, in their order."""
        B, T, *rest = x.shape
        if self.order == "places" and self.count <= B:
            x = x.reshape(self.count, B // self.count, T, *rest).swapaxes(1, 2)
        return x.reshape(self.count, B * T // self.count, *rest)

    def unfold(
        self, x: Shaped[Array, "G S *E"], batch: int, length: int
    ) -> Shaped[Array, "B T *E"]:
        """The tokens of `fold` where they were."""
        rest = x.shape[2:]
        if self.order == "places" and self.count <= batch:
            x = x.reshape(self.count, length, batch // self.count, *rest).swapaxes(1, 2)
        return x.reshape(batch, length, *rest)
