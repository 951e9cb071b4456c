"""What is told of each architecture besides its options: a small one, sizes, and what is proven.

A proof names its tests, as pytest does. A new architecture gets a card here; `jscale models` finds
the architecture itself by its type.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from jscale.models.beit3 import BEiT3, Patches
from jscale.models.bert import BERT, Pooling, RoBERTa
from jscale.models.bitnet import BitNet
from jscale.models.deepseek import DeepSeekV2, DeepSeekV3
from jscale.models.differential import Differential
from jscale.models.feed import GLU, MLP
from jscale.models.gates import Limit, TopK
from jscale.models.gemma import Gemma2, Gemma3
from jscale.models.glm import GLM4MoE
from jscale.models.gpt2 import GPT2
from jscale.models.gpt_oss import EXPERTS as OSS
from jscale.models.gpt_oss import GptOss
from jscale.models.latent import Latent
from jscale.models.llama import Llama
from jscale.models.llama4 import Chunks, Llama4
from jscale.models.llava import CLIPTower, LLaVA
from jscale.models.mistral import Mistral
from jscale.models.mixtral import Mixtral
from jscale.models.model import Config
from jscale.models.olmo import Olmo2
from jscale.models.olmoe import OLMoE
from jscale.models.phi import Phi3
from jscale.models.qwen import Qwen2, Qwen3
from jscale.models.qwen_moe import Qwen3MoE
from jscale.models.retnet import SIZES, RetNet
from jscale.models.rope_scaling import YaRN
from jscale.models.sparse import Experts, Shared
from jscale.models.transformer import EncoderDecoder, TransformerDecoder, TransformerEncoder
from jscale.models.vit import ViT
from jscale.models.windows import Windows
from jscale.models.yoco import YOCO

VOCAB = 50_257  # of sizes that are published without one


@dataclass(frozen=True)
class Proof:
    """A sentence that is true of an architecture, and the tests that would fail if it were not."""

    claim: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """A small config to look at, those that were published under a name, and what is proven."""

    small: Config | None = None
    sizes: Mapping[str, Config] = field(default_factory=dict)
    proofs: tuple[Proof, ...] = ()


def proof(claim: str, file: str, *tests: str) -> Proof:
    """A proof by tests of one file below `tests`."""
    return Proof(claim, tuple(f"tests/{file}::{test}" for test in tests))


LAWS = proof(
    "no token sees later ones or other texts of its row; neither a cache nor rematerialisation"
    " changes anything; bfloat16 is near float32",
    "models/test_decoders.py",
    "test_the_future_is_not_seen",
    "test_packed_documents_do_not_see_each_other",
    "test_a_cache_changes_nothing",
    "test_rematerialisation_changes_nothing",
    "test_bfloat16_is_near_float32_and_gradients_stay_float32",
)
LAYOUTS = proof(
    "gradients on simulated devices are those of one",
    "train/test_parallel.py",
    "test_every_layout_gives_the_gradients_of_one_device",
)
DECODER = (LAWS, LAYOUTS)
SMALL: dict[str, Any] = dict(vocab=256, dim=64, layers=2, heads=4, kv_heads=2, hidden=128)
BLOCKS: dict[str, Any] = dict(vocab=256, dim=64, heads=4, feed=MLP(128))


def original(file: str) -> tuple[Proof, Proof]:
    """What is proven of a network of TorchScale's against TorchScale itself."""
    names = {"retnet": "test_each_form_is_the_original_s"}
    equal = names.get(file, "test_outputs_and_gradients_are_the_original_s")
    return (
        proof("outputs and gradients are TorchScale's", f"parity/test_{file}.py", equal),
        proof(
            "TorchScale's weights come in and go out",
            f"parity/test_{file}.py",
            "test_weights_go_and_come_back",
        ),
    )


def released(file: str) -> tuple[Proof, Proof]:
    """What is proven of a family of releases against `transformers`."""
    return (
        proof(
            "logits and gradients are those of transformers, from its files",
            f"parity/test_{file}.py",
            "test_logits_and_gradients_are_theirs",
            "test_eight_devices_have_what_one_has",
        ),
        proof(
            "transformers reads what is exported to the same bits",
            f"parity/test_{file}.py",
            "test_an_export_is_read_there_to_the_same_bits",
        ),
    )


RELEASES = released("huggingface")


def opened(file: str) -> tuple[Proof, Proof]:
    """What is proven of networks of transformers that are no causal language models."""
    return (
        proof(
            "outputs and gradients are those of transformers, from its files",
            f"parity/test_hf_{file}.py",
            "test_outputs_and_gradients_are_theirs",
            "test_eight_devices_have_what_one_has",
        ),
        proof(
            "transformers reads what is exported to the same bits",
            f"parity/test_hf_{file}.py",
            "test_an_export_is_read_there_to_the_same_bits",
        ),
    )


WINDOWED = proof(
    "so they are where some layers see a window",
    "parity/test_hf_qwen.py",
    "test_logits_and_gradients_are_theirs",
    "test_an_export_is_read_there_to_the_same_bits",
)
CAPPED = proof(
    "capped scores hold in the loss, which never holds them all, and in generation",
    "models/test_gemma.py",
    "test_log_probabilities_are_those_of_capped_scores",
    "test_generation_draws_from_capped_scores",
)
LLAMA4 = Experts(4, TopK(1, "sigmoid", normalise=False), 64, Shared(64), weighs="inputs")
ENCODER: dict[str, Any] = dict(vocab=256, dim=64, layers=2, heads=4, hidden=128, longest=64)
VECTORS = (
    proof(
        "vectors of texts see neither padding nor other rows; gradients on simulated devices are"
        " those of one",
        "models/test_bert.py",
        "test_vectors_do_not_see_padding_nor_other_rows",
        "test_every_layout_gives_the_gradients_of_one_device",
    ),
)
IMAGES = (
    proof(
        "gradients on simulated devices are those of one",
        "models/test_vit.py",
        "test_every_layout_gives_the_gradients_of_one_device",
    ),
)
EXPERTS = proof(
    "with experts, too, outputs and gradients are TorchScale's",
    "parity/test_moe.py",
    "test_networks_with_experts_are_the_original_s",
)

SPARSE = proof(
    "experts are the formula, on any mesh; weights of any choice too",
    "models/test_topk.py",
    "test_a_choice_is_its_formula",
    "test_every_mesh_gives_what_one_device_does",
)

AHEAD = proof(
    "loss and gradients, of tokens further ahead too, are those of plain JAX; devices share them",
    "models/test_deepseek.py",
    "test_loss_and_gradients_are_those_of_plain_jax",
    "test_devices_foresee_what_one_does",
    "test_packed_documents_foresee_as_each_does_alone",
)
CACHED = proof(
    "a cache holds one latent for all heads",
    "models/test_deepseek.py",
    "test_a_cache_holds_one_latent_for_all_heads",
)
DEEPSEEK: dict[str, Any] = dict(
    scaling=YaRN(40.0, original=4096, attention=1.0), longest=163_840, sharpened=0.707
)
CORRECTED = TopK(8, "sigmoid", scale=2.5, corrected=True)

CARDS: dict[type, Card] = {
    Llama: Card(
        Llama(**SMALL),
        proofs=(
            *DECODER,
            *RELEASES,
            proof(
                "gradients are those of the same network in plain JAX",
                "train/test_parallel.py",
                "test_the_gradients_are_those_of_plain_jax",
            ),
            proof(
                "devices may share a row, by any exchange of keys and values",
                "models/test_context.py",
                "test_every_exchange_gives_the_gradients_of_one_device",
            ),
        ),
    ),
    Gemma2: Card(
        Gemma2(**SMALL, windows=Windows(32)),
        {
            "2b": Gemma2(256_000, 2304, 26, 8, 4, 9216, head=256, longest=8192),
            "9b": Gemma2(256_000, 3584, 42, 16, 8, 14_336, head=256, longest=8192),
        },
        (*released("hf_gemma"), CAPPED),
    ),
    Gemma3: Card(
        Gemma3(**SMALL, windows=Windows(32, rope=10_000.0)),
        proofs=(*DECODER[:1], *released("hf_gemma"), CAPPED),
    ),
    GPT2: Card(
        GPT2(vocab=256, dim=64, layers=2, heads=4, longest=64),
        {
            name: GPT2(VOCAB, dim, layers, heads)
            for name, dim, layers, heads in (
                ("small", 768, 12, 12),
                ("medium", 1024, 24, 16),
                ("large", 1280, 36, 20),
                ("xl", 1600, 48, 25),
            )
        },
        released("hf_gpt2"),
    ),
    Llama4: Card(
        Llama4(**SMALL, chunks=Chunks(32), experts=LLAMA4),
        proofs=(*DECODER[:1], *released("hf_llama4")),
    ),
    Olmo2: Card(Olmo2(**SMALL), proofs=released("hf_olmo")),
    Phi3: Card(
        Phi3(**SMALL, window=32, turned=12),
        {"mini": Phi3(32_064, 3072, 32, 32, 32, 8192, window=2047)},
        released("hf_phi"),
    ),
    Mistral: Card(Mistral(**SMALL, window=32), proofs=(*DECODER, *RELEASES)),
    DeepSeekV2: Card(
        DeepSeekV2(
            *(256, 64, 2, 4, 128, Experts(8, TopK(2, normalise=False), 32, Shared(32))),
            Latent(32, None, 16, 8, 16),
        ),
        {
            "lite": DeepSeekV2(
                *(102_400, 2048, 27, 16, 10_944),
                Experts(64, TopK(6, normalise=False), 1408, Shared(2816)),
                Latent(q=None),
                **DEEPSEEK,
            ),
            "236b": DeepSeekV2(
                *(102_400, 5120, 60, 128, 12_288),
                Experts(
                    *(160, TopK(6, normalise=False, scale=16.0, limit=Limit(8, 3, best=1))),
                    *(1536, Shared(3072)),
                ),
                **DEEPSEEK,
            ),
        },
        (CACHED, SPARSE, *released("hf_deepseek")),
    ),
    DeepSeekV3: Card(
        DeepSeekV3(
            *(256, 64, 2, 4, 128, Experts(8, CORRECTED, 32, Shared(32))),
            Latent(32, 48, 16, 8, 16),
            ahead=1,
        ),
        {
            "671b": DeepSeekV3(
                *(129_280, 7168, 61, 128, 18_432),
                Experts(256, replace(CORRECTED, limit=Limit(8, 4)), 2048, Shared(2048)),
                dense=3,
                **{**DEEPSEEK, "sharpened": 1.0},
            ),
        },
        (
            *(*DECODER, CACHED, AHEAD, SPARSE, *released("hf_deepseek")),
            proof(
                "what is foreseen, and its gradients, are those of transformers",
                "parity/test_hf_deepseek.py",
                "test_what_is_foreseen_is_theirs",
            ),
        ),
    ),
    GLM4MoE: Card(
        GLM4MoE(**SMALL, experts=Experts(8, CORRECTED, 32, Shared(32)), turned=8, ahead=1),
        {
            "air": GLM4MoE(
                *(151_552, 4096, 46, 96, 8, 10_944, 128, 1e6, 1e-5),
                experts=Experts(128, replace(CORRECTED, scale=1.0), 1408, Shared(1408)),
                longest=131_072,
                turned=64,
                biases=True,
            ),
            "355b": GLM4MoE(
                *(151_552, 5120, 92, 96, 8, 12_288, 128, 1e6, 1e-5),
                longest=131_072,
                dense=3,
                turned=64,
                normed=True,
                biases=True,
            ),
        },
        (
            SPARSE,
            *released("hf_glm"),
            proof(
                "what is foreseen, and its gradients, are those of transformers",
                "parity/test_hf_glm.py",
                "test_what_is_foreseen_is_theirs",
            ),
        ),
    ),
    Mixtral: Card(
        Mixtral(**SMALL, experts=Experts(4)),
        {
            "8x7b": Mixtral(32_000, 4096, 32, 32, 8, 14_336, eps=1e-5, longest=32_768),
            "8x22b": Mixtral(32_768, 6144, 56, 48, 8, 16_384, eps=1e-5, longest=65_536),
        },
        (*DECODER, SPARSE, *released("hf_mixtral")),
    ),
    OLMoE: Card(
        OLMoE(**SMALL, experts=Experts(4, TopK(2, normalise=False))),
        {"1b-7b": OLMoE(50_304, 2048, 16, 16, 16, 1024, eps=1e-5)},
        (SPARSE, *released("hf_olmoe")),
    ),
    Qwen3MoE: Card(
        Qwen3MoE(**SMALL, experts=Experts(4, hidden=32), dense=(0,)),
        {
            "30b-a3b": Qwen3MoE(
                *(151_936, 2048, 48, 32, 4, 6144, 128, 1e6),
                experts=Experts(128, TopK(8), 768),
                longest=40_960,
            ),
            "235b-a22b": Qwen3MoE(
                *(151_936, 4096, 94, 64, 4, 12_288, 128, 1e6),
                experts=Experts(128, TopK(8), 1536),
                longest=40_960,
            ),
        },
        (SPARSE, *released("hf_qwen_moe")),
    ),
    GptOss: Card(
        GptOss(**SMALL, windows=Windows(32), experts=replace(OSS, count=4)),
        {
            name: GptOss(
                *(201_088, 2880, layers, 64, 8, 2880, 64),
                experts=replace(OSS, count=count),
                scaling=YaRN(32.0, 4096, truncate=False),
                longest=131_072,
            )
            for name, layers, count in (("20b", 24, 32), ("120b", 36, 128))
        },
        (*DECODER, *released("hf_gpt_oss")),
    ),
    Qwen2: Card(Qwen2(**SMALL), proofs=(*RELEASES, WINDOWED)),
    Qwen3: Card(Qwen3(**SMALL), proofs=(*DECODER, *RELEASES, WINDOWED)),
    RetNet: Card(
        RetNet(vocab=256, dim=64, value=128, heads=4, layers=2, feed=GLU(96, "swish")),
        {name: RetNet.of_size(name, VOCAB) for name in SIZES},
        (
            *DECODER,
            *original("retnet"),
            proof(
                "devices may share a row",
                "models/test_retnet.py",
                "test_devices_that_share_a_row_hand_on_its_state",
            ),
            proof(
                "decoding takes memory of one size, rows in chunks linear memory and time",
                "benchmarks/test_retnet_claims.py",
                "test_the_kept_figures_show_the_claims",
            ),
        ),
    ),
    Differential: Card(
        Differential(**{**SMALL, "heads": 2, "kv_heads": 2}),
        proofs=(
            *DECODER,
            proof(
                "values and gradients are those of the formula",
                "models/test_differential.py",
                "test_values_and_gradients_are_those_of_the_formula",
            ),
        ),
    ),
    YOCO: Card(
        YOCO(**SMALL, window=32),
        proofs=(
            *DECODER,
            proof(
                "one layer of keys and values grows with length, windows do not",
                "models/test_yoco.py",
                "test_one_layer_of_keys_grows_with_length_and_windows_do_not",
            ),
        ),
    ),
    BitNet: Card(
        BitNet(**SMALL),
        proofs=(
            *DECODER,
            proof(
                "a ternary matrix is its formula in values and gradients",
                "models/test_bitnet.py",
                "test_a_matrix_is_the_formula_in_values_and_gradients",
            ),
            proof(
                "packing weights into 2 bits changes nothing but memory",
                "models/test_bitnet.py",
                "test_packing_changes_nothing_but_memory",
            ),
        ),
    ),
    TransformerDecoder: Card(
        TransformerDecoder(**BLOCKS, layers=2),
        proofs=(
            *DECODER,
            *original("transformer"),
            EXPERTS,
            proof(
                "dilated attention is LongNet's formula",
                "models/test_longnet.py",
                "test_rows_are_the_formula",
            ),
            proof(
                "DeepNorm carries gradients through 1,000 layers",
                "benchmarks/test_claims.py",
                "test_deepnorm_carries_gradients_and_trains_where_post_norm_does_not",
            ),
        ),
    ),
    TransformerEncoder: Card(
        TransformerEncoder(**BLOCKS, layers=2),
        proofs=(
            *original("transformer"),
            EXPERTS,
            proof(
                "it learns by hidden tokens on any mesh",
                "models/test_transformer.py",
                "test_a_masked_encoder_learns_on_any_mesh",
            ),
        ),
    ),
    EncoderDecoder: Card(
        EncoderDecoder(**BLOCKS, layers=(2, 2)),
        proofs=(
            *original("transformer"),
            EXPERTS,
            proof(
                "token by token it scores as in a whole pass",
                "models/test_transformer.py",
                "test_scores_token_by_token_are_those_of_a_whole_pass",
            ),
            proof(
                "it learns on any mesh",
                "models/test_transformer.py",
                "test_an_encoder_decoder_learns_on_any_mesh",
            ),
        ),
    ),
    BERT: Card(
        BERT(**ENCODER, head=None, pooler=True, pooling=Pooling("mean")),
        proofs=(
            *opened("encoders"),
            *VECTORS,
            proof(
                "vectors of a released sentence encoder are those of its published pipeline",
                "parity/test_sentence_encoder.py",
                "test_vectors_are_those_of_the_published_pipeline",
                "test_the_published_pipeline_reads_what_is_exported",
            ),
        ),
    ),
    RoBERTa: Card(RoBERTa(**ENCODER), proofs=opened("encoders")),
    ViT: Card(
        ViT(64, 2, 4, 128, Patches(24, 6), classes=10),
        {
            "base": ViT(768, 12, 12, 3072),
            "large": ViT(1024, 24, 16, 4096),
            "huge": ViT(1280, 32, 16, 5120, Patches(224, 14)),
        },
        (*opened("towers"), *IMAGES),
    ),
    LLaVA: Card(
        LLaVA(Llama(**SMALL), CLIPTower(64, 2, 4, 128, Patches(24, 6)), image_token=255),
        {
            "1.5-7b": LLaVA(
                Llama(32_064, 4096, 32, 32, 32, 11_008, eps=1e-5),
                CLIPTower(1024, 24, 16, 4096),
                image_token=32_000,
            ),
        },
        (
            *opened("llava"),
            proof(
                "it writes what transformers writes of the same images",
                "parity/test_hf_llava.py",
                "test_it_writes_what_theirs_writes",
            ),
            *IMAGES,
            proof(
                "it describes images that it has never seen",
                "models/test_vit.py",
                "test_a_llava_describes_images_that_it_has_never_seen",
            ),
        ),
    ),
    BEiT3: Card(
        BEiT3(**BLOCKS, layers=2, patches=Patches(24, 6)),
        proofs=(
            *original("beit3"),
            proof(
                "gradients on simulated devices are those of one",
                "models/test_beit3.py",
                "test_every_layout_gives_the_gradients_of_one_device",
            ),
            proof(
                "it finds the captions of images that it has never seen",
                "models/test_beit3.py",
                "test_captions_never_seen_are_found_for_their_images",
            ),
        ),
    ),
}
