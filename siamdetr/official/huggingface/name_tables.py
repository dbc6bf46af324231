"""Names of tensors in Hugging Face checkpoints and in ours, one table per detector.

The tables are read in both directions.
They have the names that transformers writes into files (`names` translates newer ones).
In a name, `{n}` and `{m}` stand for a number, `{p}` for weight or bias, and `{r}` for any rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from siamdetr.official.rules import UNUSED_ROW


@dataclass(frozen=True)
class Pair:
    """A tensor of transformers and its names here.

    Several of ours are concatenated in it along its last axis.
    """

    theirs: str
    ours: tuple[str, ...]


def _pairs(theirs: str, ours: str, names: Mapping[str, str], last: str = ".{p}") -> tuple[Pair, ...]:
    """A pair for each part of a layer."""
    return tuple(Pair(f"{theirs}{a}{last}", (f"{ours}{b}{last}",)) for a, b in names.items())


# transformers' own ResNets; those of timm have the names of torchvision.
RESNET_NAMES: tuple[Pair, ...] = (
    Pair("embedder.embedder.convolution.{r}", ("conv1.{r}",)),
    Pair("embedder.embedder.normalization.{r}", ("bn1.{r}",)),
    *(
        Pair(f"encoder.stages.{stage}.layers.{{n}}.{theirs}.{{r}}", (f"layer{stage + 1}.{{n}}.{ours}.{{r}}",))
        for stage in range(4)
        for theirs, ours in (
            *((f"layer.{i}.convolution", f"conv{i + 1}") for i in range(3)),
            *((f"layer.{i}.normalization", f"bn{i + 1}") for i in range(3)),
            ("shortcut.convolution", "downsample.0"),
            ("shortcut.normalization", "downsample.1"),
        )
    ),
)


_ENCODER_LAYER = ("model.encoder.layers.{n}.", "encoder.layers.{n}.")


_DECODER_LAYER = ("model.decoder.layers.{n}.", "decoder.layers.{n}.")


_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}


_FEEDFORWARD = {"fc1": "feedforward.expand", "fc2": "feedforward.contract"}


_ENCODER_NORMS = {"self_attn_layer_norm": "attention_norm", "final_layer_norm": "feedforward.norm"}


_DECODER_NORMS = {
    "self_attn_layer_norm": "self_norm",
    "encoder_attn_layer_norm": "cross_norm",
    "final_layer_norm": "feedforward.norm",
}


_ENCODER: tuple[Pair, ...] = (
    *_pairs(*_ENCODER_LAYER, {f"self_attn.{a}": f"attention.{b}" for a, b in _ATTENTION.items()}),
    *_pairs(*_ENCODER_LAYER, _FEEDFORWARD | _ENCODER_NORMS),
)


_AROUND: tuple[Pair, ...] = (
    Pair("model.input_projection.{p}", ("input_projection.{p}",)),
    Pair("model.decoder.layernorm.{p}", ("decoder.norm.{p}",)),
    Pair("bbox_predictor.{r}", ("box_head.{r}",)),
)


_LEARNED_POSITIONS: tuple[Pair, ...] = (
    Pair("model.query_position_embeddings.weight", ("learned_queries.position.weight",)),
    Pair("class_labels_classifier.{p}", ("class_head.{p}",)),
)


DETR: tuple[Pair, ...] = (
    *_ENCODER,
    Pair("model.encoder.layernorm.{p}", ("encoder.norm.{p}",)),  # of Table Transformer, which is DETR with pre-norm
    *_pairs(*_DECODER_LAYER, {f"self_attn.{a}": f"self_attention.{b}" for a, b in _ATTENTION.items()}),
    *_pairs(*_DECODER_LAYER, {f"encoder_attn.{a}": f"cross_attention.{b}" for a, b in _ATTENTION.items()}),
    *_pairs(*_DECODER_LAYER, _FEEDFORWARD | _DECODER_NORMS),
    *_AROUND,
    *_LEARNED_POSITIONS,
)


CONDITIONAL: tuple[Pair, ...] = (
    *_ENCODER,
    *_pairs(
        *_DECODER_LAYER,
        {
            "sa_qcontent_proj": "self_attention.query_content",
            "sa_qpos_proj": "self_attention.query_position",
            "sa_kcontent_proj": "self_attention.key_content",
            "sa_kpos_proj": "self_attention.key_position",
            "sa_v_proj": "self_attention.value",
            "self_attn.out_proj": "self_attention.out",
            "ca_qcontent_proj": "cross_attention.query_content",
            "ca_qpos_proj": "cross_attention.query_position",
            "ca_qpos_sine_proj": "cross_attention.query_sine",
            "ca_kcontent_proj": "cross_attention.key_content",
            "ca_kpos_proj": "cross_attention.key_position",
            "ca_v_proj": "cross_attention.value",
            "encoder_attn.out_proj": "cross_attention.out",
        }
        | _FEEDFORWARD
        | _DECODER_NORMS,
    ),
    Pair("model.decoder.query_scale.{r}", ("decoder.spatial_scale.{r}",)),
    Pair("model.decoder.ref_point_head.{r}", ("decoder.reference_head.{r}",)),
    *_AROUND,
    *_LEARNED_POSITIONS,
)


_DAB_ATTENTION = {
    "query_content_proj": "query_content",
    "query_pos_proj": "query_position",
    "key_content_proj": "key_content",
    "key_pos_proj": "key_position",
    "value_proj": "value",
}


DAB: tuple[Pair, ...] = (
    *_ENCODER,
    Pair("model.encoder.layers.{n}.activation_fn.weight", ("encoder.layers.{n}.feedforward.activation.weight",)),
    Pair("model.encoder.query_scale.{r}", ("encoder.position_scale.{r}",)),
    *_pairs(
        *_DECODER_LAYER,
        {f"self_attn.self_attn_{a}": f"self_attention.{b}" for a, b in _DAB_ATTENTION.items()}
        | {f"cross_attn.cross_attn_{a}": f"cross_attention.{b}" for a, b in _DAB_ATTENTION.items()}
        | {
            "self_attn.self_attn.output_proj": "self_attention.out",
            "self_attn.self_attn_layer_norm": "self_norm",
            "cross_attn.cross_attn_query_pos_sine_proj": "cross_attention.query_sine",
            "cross_attn.cross_attn.output_proj": "cross_attention.out",
            "cross_attn.cross_attn_layer_norm": "cross_norm",
            "mlp.fc1": "feedforward.expand",
            "mlp.fc2": "feedforward.contract",
            "mlp.final_layer_norm": "feedforward.norm",
        },
    ),
    Pair("model.decoder.layers.{n}.mlp.activation_fn.weight", ("decoder.layers.{n}.feedforward.activation.weight",)),
    Pair("model.decoder.query_scale.{r}", ("decoder.spatial_scale.{r}",)),
    Pair("model.decoder.ref_point_head.{r}", ("decoder.position_head.{r}",)),
    Pair("model.decoder.ref_anchor_head.{r}", ("decoder.size_head.{r}",)),
    Pair("model.query_refpoint_embeddings.weight", ("learned_queries.anchors.weight",)),
    Pair("model.patterns.weight", ("learned_queries.patterns.weight",)),
    *_AROUND,
    Pair("class_embed.{p}", ("class_head.{p}",)),
)


_SAMPLING = {
    "sampling_offsets": "offsets",
    "attention_weights": "weights",
    "value_proj": "value",
    "output_proj": "out",
}


DEFORMABLE: tuple[Pair, ...] = (
    *_pairs(*_ENCODER_LAYER, {f"self_attn.{a}": f"attention.{b}" for a, b in _SAMPLING.items()}),
    *_pairs(*_ENCODER_LAYER, _FEEDFORWARD | _ENCODER_NORMS),
    *_pairs(*_DECODER_LAYER, {f"self_attn.{a}": f"self_attention.{b}" for a, b in _ATTENTION.items()}),
    *_pairs(*_DECODER_LAYER, {f"encoder_attn.{a}": f"cross_attention.{b}" for a, b in _SAMPLING.items()}),
    *_pairs(*_DECODER_LAYER, _FEEDFORWARD | _DECODER_NORMS),
    Pair("model.level_embed", ("encoder.level_embedding",)),
    Pair("model.input_proj.{r}", ("input_projection.levels.{r}",)),
    Pair(
        "model.query_position_embeddings.weight",
        ("learned_queries.position.weight", "learned_queries.content.weight"),
    ),
    Pair("model.reference_points.{p}", ("decoder.reference_head.{p}",)),
    Pair("model.enc_output.{p}", ("decoder.proposer.project.{p}",)),
    Pair("model.enc_output_norm.{p}", ("decoder.proposer.norm.{p}",)),
    Pair("model.pos_trans.{p}", ("decoder.proposer.query.{p}",)),
    Pair("model.pos_trans_norm.{p}", ("decoder.proposer.query_norm.{p}",)),
)


SHARED_HEADS: tuple[Pair, ...] = (
    Pair("class_embed.0.{p}", ("class_head.{p}",)),
    Pair("bbox_embed.0.{r}", ("box_head.{r}",)),
)


LAYER_HEADS: tuple[Pair, ...] = (
    Pair("class_embed.{n}.{p}", ("class_head.heads.{n}.{p}",)),
    Pair("bbox_embed.{n}.{r}", ("box_head.heads.{n}.{r}",)),
)


# RT-DETR's ResNet-vd.
RESNET_VD_NAMES: tuple[Pair, ...] = (
    *(
        pair
        for theirs, ours in (("convolution", "conv"), ("normalization", "norm"))
        for pair in (
            *(Pair(f"embedder.embedder.{i}.{theirs}.{{r}}", (f"conv1.conv1_{i + 1}.{ours}.{{r}}",)) for i in range(3)),
            *(
                Pair(
                    f"encoder.stages.{{n}}.layers.{{m}}.layer.{i}.{theirs}.{{r}}",
                    (f"res_layers.{{n}}.blocks.{{m}}.branch2{branch}.{ours}.{{r}}",),
                )
                for i, branch in enumerate("abc")
            ),
            Pair(f"encoder.stages.0.layers.0.shortcut.{theirs}.{{r}}", (f"res_layers.0.blocks.0.short.{ours}.{{r}}",)),
            Pair(
                f"encoder.stages.{{n}}.layers.0.shortcut.1.{theirs}.{{r}}",
                (f"res_layers.{{n}}.blocks.0.short.conv.{ours}.{{r}}",),
            ),
        )
    ),
)


_AIFI_LAYER = ("model.encoder.encoder.0.layers.{n}.", "encoder.layers.{n}.")


DENOISING_LABELS = "model.denoising_class_embed.weight"  # ends with a row for the empty slots, which stays zero


RTDETR: tuple[Pair, ...] = (
    Pair("model.encoder_input_proj.{n}.0.weight", ("input_projection.levels.{n}.conv.weight",)),
    Pair("model.encoder_input_proj.{n}.1.{r}", ("input_projection.levels.{n}.norm.{r}",)),
    *_pairs(*_AIFI_LAYER, {f"self_attn.{a}": f"attention.{b}" for a, b in _ATTENTION.items()}),
    *_pairs(*_AIFI_LAYER, _FEEDFORWARD | _ENCODER_NORMS),
    Pair("model.encoder.lateral_convs.{r}", ("encoder.lateral.{r}",)),
    Pair("model.encoder.fpn_blocks.{r}", ("encoder.top_down.{r}",)),
    Pair("model.encoder.downsample_convs.{r}", ("encoder.downsample.{r}",)),
    Pair("model.encoder.pan_blocks.{r}", ("encoder.bottom_up.{r}",)),
    Pair("model.decoder_input_proj.{n}.0.weight", ("encoder.projection.levels.{n}.conv.weight",)),
    Pair("model.decoder_input_proj.{n}.1.{r}", ("encoder.projection.levels.{n}.norm.{r}",)),
    *_pairs(*_DECODER_LAYER, {f"self_attn.{a}": f"self_attention.{b}" for a, b in _ATTENTION.items()}),
    *_pairs(*_DECODER_LAYER, {f"encoder_attn.{a}": f"cross_attention.{b}" for a, b in _SAMPLING.items()}),
    *_pairs(*_DECODER_LAYER, _FEEDFORWARD | _DECODER_NORMS),
    Pair("model.decoder.query_pos_head.{r}", ("decoder.position_head.{r}",)),
    Pair(DENOISING_LABELS, ("learned_queries.labels.weight", UNUSED_ROW)),
    Pair("model.enc_output.0.{p}", ("decoder.proposer.project.{p}",)),
    Pair("model.enc_output.1.{p}", ("decoder.proposer.norm.{p}",)),
    Pair("class_embed.{n}.{p}", ("class_head.heads.{n}.{p}",)),
    Pair("bbox_embed.{n}.{r}", ("box_head.heads.{n}.{r}",)),
)


def rtdetr_pairs(decoder_layers: int) -> tuple[Pair, ...]:
    """Names of RT-DETR: the proposals' heads come after those of the layers."""
    return (
        Pair("model.enc_score_head.{p}", (f"class_head.heads.{decoder_layers}.{{p}}",)),
        Pair("model.enc_bbox_head.{r}", (f"box_head.heads.{decoder_layers}.{{r}}",)),
        *RTDETR,
    )
