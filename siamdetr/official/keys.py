"""Names of tensors in the official checkpoints and in ours: a table for each part of a detector.

PyTorch packs the projections of query, key and value into one tensor (`in_proj_*`):
three of our names share such a tensor, and take its rows one after the other.
"""

from __future__ import annotations

from siamdetr.official.rules import UNUSED_ROW, UNUSED_ROWS, Aside, Rule


def _packed(official: str, ours: str) -> tuple[Rule, Rule]:
    """The two rules of one `nn.MultiheadAttention`."""
    thirds = tuple(rf"{ours}.{part}.\2" for part in ("query", "key", "value"))
    return Rule(rf"{official}\.in_proj_(weight|bias)", thirds), Rule(
        rf"{official}\.out_proj\.(weight|bias)", (rf"{ours}.out.\2",)
    )


def _renamed(official: str, ours: str, names: dict[str, str]) -> tuple[Rule, ...]:
    """One rule per part of a layer, for its weight and its bias."""
    return tuple(Rule(rf"{official}\.{a}\.(weight|bias)", (rf"{ours}.{b}.\2",)) for a, b in names.items())


_ENCODER_LAYER = (r"transformer\.encoder\.layers\.(\d+)", r"encoder.layers.\1")
_DECODER_LAYER = (r"transformer\.decoder\.layers\.(\d+)", r"decoder.layers.\1")
_FEEDFORWARD = {"linear1": "feedforward.expand", "linear2": "feedforward.contract"}
_DECODER_NORMS = {"norm1": "self_norm", "norm2": "cross_norm", "norm3": "feedforward.norm"}

BACKBONE: tuple[Rule | Aside, ...] = (
    Aside(r".*\.num_batches_tracked", "a counter of batches, which frozen batch norms do not keep"),
    Rule(r"backbone\.0\.body\.(.+)", (r"backbone.body.\1",)),
)

_ENCODER: tuple[Rule | Aside, ...] = (
    *_packed(_ENCODER_LAYER[0] + r"\.self_attn", _ENCODER_LAYER[1] + ".attention"),
    *_renamed(*_ENCODER_LAYER, _FEEDFORWARD | {"norm1": "attention_norm", "norm2": "feedforward.norm"}),
)

_AROUND: tuple[Rule | Aside, ...] = (
    Rule(r"transformer\.decoder\.norm\.(weight|bias)", (r"decoder.norm.\1",)),
    Rule(r"query_embed\.weight", ("learned_queries.position.weight",)),
    Rule(r"input_proj\.(weight|bias)", (r"input_projection.\1",)),
)

HEADS: tuple[Rule | Aside, ...] = (
    Rule(r"class_embed\.(weight|bias)", (r"class_head.\1",)),
    Rule(r"bbox_embed\.(layers\..+)", (r"box_head.\1",)),
)

VANILLA: tuple[Rule | Aside, ...] = (
    *_ENCODER,
    Rule(r"transformer\.encoder\.norm\.(weight|bias)", (r"encoder.norm.\1",)),  # only with pre-norm
    *_AROUND,
    *_packed(_DECODER_LAYER[0] + r"\.self_attn", _DECODER_LAYER[1] + ".self_attention"),
    *_packed(_DECODER_LAYER[0] + r"\.multihead_attn", _DECODER_LAYER[1] + ".cross_attention"),
    *_renamed(*_DECODER_LAYER, _FEEDFORWARD | _DECODER_NORMS),
)

_CONDITIONAL_LAYERS: tuple[Rule | Aside, ...] = (
    *_renamed(
        *_DECODER_LAYER,
        {
            "sa_qcontent_proj": "self_attention.query_content",
            "sa_qpos_proj": "self_attention.query_position",
            "sa_kcontent_proj": "self_attention.key_content",
            "sa_kpos_proj": "self_attention.key_position",
            "sa_v_proj": "self_attention.value",
            r"self_attn\.out_proj": "self_attention.out",
            "ca_qcontent_proj": "cross_attention.query_content",
            "ca_qpos_proj": "cross_attention.query_position",
            "ca_qpos_sine_proj": "cross_attention.query_sine",
            "ca_kcontent_proj": "cross_attention.key_content",
            "ca_kpos_proj": "cross_attention.key_position",
            "ca_v_proj": "cross_attention.value",
            r"cross_attn\.out_proj": "cross_attention.out",
        }
        | _FEEDFORWARD
        | _DECODER_NORMS,
    ),
)

CONDITIONAL: tuple[Rule | Aside, ...] = (
    *_ENCODER,
    *_AROUND,
    *_CONDITIONAL_LAYERS,
    Rule(r"transformer\.decoder\.query_scale\.(.+)", (r"decoder.spatial_scale.\1",)),
    Rule(r"transformer\.decoder\.ref_point_head\.(.+)", (r"decoder.reference_head.\1",)),
)

# The released pretraining checkpoints have the backbone's own names; its converter writes those of DETR.
SIAMESE_BACKBONE: tuple[Rule | Aside, ...] = (Rule(r"backbone\.(?!0\.body\.)(.+)", (r"backbone.body.\1",)),)

DAB: tuple[Rule | Aside, ...] = (
    *_ENCODER,
    *_AROUND,
    *_CONDITIONAL_LAYERS,
    Rule(
        r"transformer\.(en|de)coder\.layers\.(\d+)\.activation\.weight",
        (r"\1coder.layers.\2.feedforward.activation.weight",),
    ),
    Rule(r"transformer\.encoder\.query_scale\.(.+)", (r"encoder.position_scale.\1",)),
    Rule(r"transformer\.decoder\.query_scale\.(.+)", (r"decoder.spatial_scale.\1",)),
    Rule(r"transformer\.decoder\.ref_point_head\.(.+)", (r"decoder.position_head.\1",)),
    Rule(r"transformer\.decoder\.ref_anchor_head\.(.+)", (r"decoder.size_head.\1",)),
    Rule(r"refpoint_embed\.weight", ("learned_queries.anchors.weight",)),
    Rule(r"transformer\.patterns\.weight", ("learned_queries.patterns.weight",)),
    Aside(r"transformer\.decoder\.bbox_embed\..+", "the box head again, which has its own name"),
)

# The last row of `label_enc` is the content of the matching queries.
DN: tuple[Rule | Aside, ...] = (
    *DAB,
    Rule(r"label_enc\.weight", ("learned_queries.labels.weight", "learned_queries.content.weight")),
)

_SAMPLING = {
    "sampling_offsets": "offsets",
    "attention_weights": "weights",
    "value_proj": "value",
    "output_proj": "out",
}

DEFORMABLE: tuple[Rule | Aside, ...] = (
    *_renamed(
        *_ENCODER_LAYER,
        {rf"self_attn\.{a}": f"attention.{b}" for a, b in _SAMPLING.items()}
        | _FEEDFORWARD
        | {"norm1": "attention_norm", "norm2": "feedforward.norm"},
    ),
    *_packed(_DECODER_LAYER[0] + r"\.self_attn", _DECODER_LAYER[1] + ".self_attention"),
    *_renamed(
        *_DECODER_LAYER,
        {rf"cross_attn\.{a}": f"cross_attention.{b}" for a, b in _SAMPLING.items()}
        | _FEEDFORWARD
        | {"norm1": "cross_norm", "norm2": "self_norm", "norm3": "feedforward.norm"},
    ),
    Rule(r"transformer\.level_embed", ("encoder.level_embedding",)),
    Rule(r"input_proj\.(.+)", (r"input_projection.levels.\1",)),
    Rule(r"transformer\.reference_points\.(weight|bias)", (r"decoder.reference_head.\1",)),
    Rule(r"transformer\.enc_output\.(weight|bias)", (r"decoder.proposer.project.\1",)),
    Rule(r"transformer\.enc_output_norm\.(weight|bias)", (r"decoder.proposer.norm.\1",)),
    Rule(r"transformer\.pos_trans\.(weight|bias)", (r"decoder.proposer.query.\1",)),
    Rule(r"transformer\.pos_trans_norm\.(weight|bias)", (r"decoder.proposer.query_norm.\1",)),
    Aside(r"transformer\.decoder\.(bbox|class)_embed\..+", "the heads again, which have their own names"),
)

# Position, then content; the official pretraining keeps them apart.
DEFORMABLE_QUERIES: tuple[Rule | Aside, ...] = (
    Rule(r"query_embed\.weight", ("learned_queries.position.weight", "learned_queries.content.weight")),
)
SIAMESE_DEFORMABLE_QUERIES: tuple[Rule | Aside, ...] = (
    Rule(r"query_embed\.weight", ("learned_queries.position.weight",)),
    Rule(r"transformer\.tgt_embed\.weight", ("learned_queries.content.weight",)),
)

# One head for all layers is listed once per layer.
SHARED_LAYER_HEADS: tuple[Rule | Aside, ...] = (
    Rule(r"class_embed\.0\.(weight|bias)", (r"class_head.\1",)),
    Rule(r"bbox_embed\.0\.(layers\..+)", (r"box_head.\1",)),
    Aside(r"(class|bbox)_embed\.[1-9]\d*\..+", "all layers share the head of layer 0"),
)
LAYER_HEADS: tuple[Rule | Aside, ...] = (
    Rule(r"class_embed\.(\d+)\.(weight|bias)", (r"class_head.heads.\1.\2",)),
    Rule(r"bbox_embed\.(\d+)\.(layers\..+)", (r"box_head.heads.\1.\2",)),
)

DAB_DEFORMABLE: tuple[Rule | Aside, ...] = (
    *DEFORMABLE,
    *LAYER_HEADS,
    Rule(r"transformer\.decoder\.query_scale\.(.+)", (r"decoder.position_scale.\1",)),
    Rule(r"transformer\.decoder\.ref_point_head\.(.+)", (r"decoder.position_head.\1",)),
    Rule(r"refpoint_embed\.weight", ("learned_queries.anchors.weight",)),
    Rule(r"tgt_embed\.weight", ("learned_queries.content.weight",)),
    Rule(r"patterns_embed\.weight", ("learned_queries.patterns.weight",)),
)

# Matching queries have contents of their own (`tgt_embed`), so that the row for them is left over.
DN_DEFORMABLE: tuple[Rule | Aside, ...] = (
    *DAB_DEFORMABLE,
    Rule(r"label_enc\.weight", ("learned_queries.labels.weight", UNUSED_ROW)),
)

# One class head and one box head serve all layers, and are listed once per layer, twice over; the proposals have their own.
DINO: tuple[Rule | Aside, ...] = (
    Aside(r"(transformer\.decoder\.)?(class|bbox)_embed\.[1-9]\d*\..+", "all layers share the head of layer 0"),
    Rule(r"class_embed\.0\.(weight|bias)", (r"class_head.heads.0.\1",)),
    Rule(r"bbox_embed\.0\.(layers\..+)", (r"box_head.heads.0.\1",)),
    Rule(r"transformer\.enc_out_class_embed\.(weight|bias)", (r"class_head.heads.1.\1",)),
    Rule(r"transformer\.enc_out_bbox_embed\.(layers\..+)", (r"box_head.heads.1.\1",)),
    Rule(r"transformer\.decoder\.norm\.(weight|bias)", (r"decoder.norm.\1",)),
    Rule(r"transformer\.decoder\.ref_point_head\.(.+)", (r"decoder.position_head.\1",)),
    Rule(r"transformer\.tgt_embed\.weight", ("learned_queries.content.weight",)),
    Rule(r"label_enc\.weight", ("learned_queries.labels.weight", UNUSED_ROWS)),
    *DEFORMABLE,
)

# Version 1 numbers the parts of its projections, version 2 names them.
_PROJECTIONS = r"(?:0|conv)", r"(?:1|norm)"

RTDETR: tuple[Rule | Aside, ...] = (
    Aside(r"decoder\.(anchors|valid_mask)", "a cache of the cells' anchors, which are computed here"),
    Aside(r".*\.num_points_scale", "the reciprocal of each level's number of points, a setting here"),
    Rule(r"backbone\.(.+)", (r"backbone.body.\1",)),
    Rule(rf"encoder\.input_proj\.(\d+)\.{_PROJECTIONS[0]}\.weight", (r"input_projection.levels.\1.conv.weight",)),
    Rule(rf"encoder\.input_proj\.(\d+)\.{_PROJECTIONS[1]}\.(.+)", (r"input_projection.levels.\1.norm.\2",)),
    *_packed(r"encoder\.encoder\.0\.layers\.(\d+)\.self_attn", r"encoder.layers.\1.attention"),
    *_renamed(
        r"encoder\.encoder\.0\.layers\.(\d+)",
        r"encoder.layers.\1",
        _FEEDFORWARD | {"norm1": "attention_norm", "norm2": "feedforward.norm"},
    ),
    Rule(r"encoder\.lateral_convs\.(.+)", (r"encoder.lateral.\1",)),
    Rule(r"encoder\.fpn_blocks\.(.+)", (r"encoder.top_down.\1",)),
    Rule(r"encoder\.downsample_convs\.(.+)", (r"encoder.downsample.\1",)),
    Rule(r"encoder\.pan_blocks\.(.+)", (r"encoder.bottom_up.\1",)),
    Rule(rf"decoder\.input_proj\.(\d+)\.{_PROJECTIONS[0]}\.weight", (r"encoder.projection.levels.\1.conv.weight",)),
    Rule(rf"decoder\.input_proj\.(\d+)\.{_PROJECTIONS[1]}\.(.+)", (r"encoder.projection.levels.\1.norm.\2",)),
    *_packed(r"decoder\.decoder\.layers\.(\d+)\.self_attn", r"decoder.layers.\1.self_attention"),
    *_renamed(
        r"decoder\.decoder\.layers\.(\d+)",
        r"decoder.layers.\1",
        {rf"cross_attn\.{a}": f"cross_attention.{b}" for a, b in _SAMPLING.items()} | _FEEDFORWARD | _DECODER_NORMS,
    ),
    Rule(r"decoder\.denoising_class_embed\.weight", ("learned_queries.labels.weight", UNUSED_ROW)),
    Rule(r"decoder\.tgt_embed\.weight", ("learned_queries.content.weight",)),
    Rule(r"decoder\.query_pos_head\.(.+)", (r"decoder.position_head.\1",)),
    Rule(r"decoder\.enc_output\.(?:0|proj)\.(weight|bias)", (r"decoder.proposer.project.\1",)),
    Rule(r"decoder\.enc_output\.(?:1|norm)\.(weight|bias)", (r"decoder.proposer.norm.\1",)),
    Rule(r"decoder\.dec_score_head\.(\d+)\.(weight|bias)", (r"class_head.heads.\1.\2",)),
    Rule(r"decoder\.dec_bbox_head\.(\d+)\.(.+)", (r"box_head.heads.\1.\2",)),
)


def rtdetr_rules(decoder_layers: int, *, counters: bool) -> tuple[Rule | Aside, ...]:
    """Names of RT-DETR: the proposals' heads come after those of the layers.

    Args:
        decoder_layers: of the detector.
        counters: the backbone's batch norms train, and so keep their counters of batches.
    """
    frozen = (
        ()
        if counters
        else (Aside(r"backbone\..*num_batches_tracked", "a counter that frozen batch norms do not keep"),)
    )
    later = "|".join(str(layer) for layer in range(decoder_layers, 32))
    return (
        *frozen,
        Aside(
            rf"decoder\.(?:decoder\.layers|dec_score_head|dec_bbox_head)\.(?:{later})\..+",
            "a layer after eval_idx, which serves training alone",
        ),
        Rule(r"decoder\.enc_score_head\.(weight|bias)", (rf"class_head.heads.{decoder_layers}.\1",)),
        Rule(r"decoder\.enc_bbox_head\.(.+)", (rf"box_head.heads.{decoder_layers}.\1",)),
        *RTDETR,
    )


SIAMESE_OWN: tuple[Rule | Aside, ...] = (
    Rule(r"patch2query\.(weight|bias)", (r"region_projection.\1",)),
    Rule(r"pred_head\.feature_align\.(.+)", (r"feature_head.\1",)),
    Rule(r"enc_head\.0\.(projector|predictor)\.mlp\.(.+)", (r"global_head.\1.\2",)),
    Aside(r"pred_head\.criterion\.empty_weight", "the class weights of the loss, a setting here"),
)

UPDETR_OWN: tuple[Rule | Aside, ...] = (
    Rule(r"patch2query\.(weight|bias)", (r"region_projection.\1",)),
    Rule(r"feature_align\.(.+)", (r"feature_head.\1",)),
)

DETREG_OWN: tuple[Rule | Aside, ...] = (Rule(r"feature_embed\.(.+)", (r"embedding_head.\1",)),)
