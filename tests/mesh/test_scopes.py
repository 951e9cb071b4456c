"""Paths of operations, as JAX and XLA write them, and the scopes of the model in them."""

import pytest

from jscale.mesh.scopes import Scope, scope_of


@pytest.mark.parametrize(
    ("name", "path", "backward"),
    [
        ("", "", False),
        ("broadcast.68", "", False),
        ("state.params['embed']['table']", "", False),
        ("jit(step)/mul", "", False),
        ("jit(step)/jvp(embed)/gather", "embed", False),
        ("jit(step)/jvp()/attend/btd,dnh->btnh/dot_general", "attend", False),
        ("jit(step)/vmap(jvp(a/b))/jit(g)/c/sin", "a/b/c", False),
        ("jit(step)/transpose(jvp(unembed))/btd,dv->btv/transpose", "unembed", True),
        ("jit(f)/transpose(jvp(layers))/while/body/closed_call/feed/mul", "layers/feed", True),
        ("jit(f)/transpose(jvp())/checkpoint/rematted_computation/attend/mul", "attend", True),
        ("jit(f)/transpose(jvp(jit(_where)))/select_n", "", True),
        ("jit(f)/while/body/closed_call/feed/jit(silu)", "feed", False),
        ("jit(f)/layers/(attend/add:attend/mul)", "layers/attend", False),
        ("jit(f)/layers/(attend/add:feed/mul)", "layers/attend + feed", False),
        ("jit(f)/(transpose(jvp(a))/add:transpose(jvp(b))/mul:jvp()/neg)", "a + b", True),
        ("jit(f)/(jvp()/add:mul)", "", False),
        ("jit(f)/optimizer/mul;jit(f)", "optimizer", False),
    ],
)
def test_the_scope_of_an_operation(name: str, path: str, backward: bool) -> None:
    assert scope_of(name) == Scope(path, backward)


def test_a_scope_reads_as_a_phrase() -> None:
    assert [str(Scope("a/b")), str(Scope("a", True)), str(Scope(""))] == [
        "a/b",
        "a backward",
        "(no scope)",
    ]
