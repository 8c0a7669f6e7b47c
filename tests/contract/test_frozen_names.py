"""Names that users' files, commands and code depend on. Names may be added, not removed or renamed.

Class and argument names are those of the YAML files of D-FINE, those of DEIM for its additions, and those of
`DINOv3Backbone`. Official settings without effect are not accepted (docs/decisions) and not listed.
"""

import re
import subprocess
import sys

import pytest

import src  # noqa: F401  every class registers itself
from src.core.registry import find, names, shared_names
from src.core.yaml_config import BLOCKS, RunSettings
from tests.fixtures.golden import ROOT, coco_config
from tests.fixtures.tiny import tiny_config

COMPONENTS = {
    "DFINE": "backbone encoder decoder",
    "HGNetv2": "name use_lab return_idx freeze_stem_only freeze_at freeze_norm pretrained local_model_dir",
    "DINOv3Backbone": "model_name pretrained checkpoint_path out_channels feat_strides "
    "freeze_backbone tap_blocks tap_norm upsample_mode position_encoding detail_channels "
    "detail_strides adapter_start windows window_blocks "
    "gradient_checkpointing rope_rescale_coords drop_path lora_rank lora_alpha lora_targets "
    "image_mean image_std embed_dim depth num_heads mlp_ratio init_values "
    "num_reg_tokens swiglu_mlp qkv_bias",
    "HybridEncoder": "in_channels feat_strides hidden_dim nhead dim_feedforward dropout enc_act "
    "use_encoder_idx num_encoder_layers pe_temperature expansion depth_mult act eval_spatial_size",
    "DFINETransformer": "num_classes hidden_dim num_queries feat_channels feat_strides "
    "num_levels num_points nhead num_layers dim_feedforward dropout activation num_denoising "
    "label_noise_ratio box_noise_scale learn_query_content eval_spatial_size eval_idx eps "
    "aux_loss cross_attn_method query_select_method reg_max reg_scale layer_scale",
    "DFINECriterion": "matcher weight_dict losses alpha gamma num_classes reg_max boxes_weight_format",
    "HungarianMatcher": "weight_dict use_focal_loss alpha gamma",
    "DFINEPostProcessor": "num_classes use_focal_loss num_top_queries remap_mscoco_category",
    "DataLoader": "dataset collate_fn batch_size total_batch_size shuffle num_workers drop_last",
    "CocoDetection": "img_folder ann_file transforms return_masks remap_mscoco_category",
    "BatchImageCollateFunction": "base_size base_size_repeat stop_epoch ema_restart_decay "
    "mixup_prob mixup_epochs copyblend_prob copyblend_epochs copyblend_type area_threshold "
    "num_objects with_expand expand_ratios",
    "CocoEvaluator": "iou_types",
    "Compose": "ops policy mosaic_prob",
    "Mosaic": "output_size rotation_range translation_range scaling_range probability "
    "fill_value use_cache max_cached_images random_pop",
    "RandomPhotometricDistort": "brightness contrast saturation hue p",
    "RandomZoomOut": "fill side_range p",
    "RandomIoUCrop": "min_scale max_scale min_aspect_ratio max_aspect_ratio sampler_options trials p",
    "RandomHorizontalFlip": "p",
    "RandomCrop": "size",
    "Resize": "size",
    "Normalize": "mean std",
    "SanitizeBoundingBoxes": "min_size",
    "PadToSize": "size fill",
    "ConvertPILImage": "dtype scale",
    "ConvertBoxes": "fmt normalize",
    "EmptyTransform": "",
    "ModelEMA": "decay warmups start",
    "GradScaler": "enabled init_scale growth_factor backoff_factor growth_interval",
    "AdamW": "params lr betas eps weight_decay amsgrad",
    "Adam": "params lr betas eps weight_decay amsgrad",
    "SGD": "params lr momentum dampening weight_decay nesterov",
    "MultiStepLR": "milestones gamma",
    "CosineAnnealingLR": "T_max eta_min",
    "OneCycleLR": "max_lr total_steps epochs steps_per_epoch pct_start anneal_strategy "
    "div_factor final_div_factor",
    "LinearWarmup": "warmup_duration",
    "GramAnchoring": "weight num_tokens all_taps checkpoint_path",
    "FeatureDistillation": "teacher checkpoint_path weight share tolerance default_weight",
    "DetectorDistillation": "teacher config family encoder_weight encoder_share encoder_tolerance "
    "encoder_default_weight decoder_weight min_score max_detections",
}

TOP_LEVEL_KEYS = [
    "task",
    "epochs",
    "use_amp",
    "compile",
    "use_ema",
    "sync_bn",
    "find_unused_parameters",
    "clip_max_norm",
    "print_freq",
    "checkpoint_freq",
    "seed",
    "device",
    "output_dir",
    "summary_dir",
    "resume",
    "tuning",
    "loggers",
    "use_wandb",
    "project_name",
    "exp_name",
    "model",
    "criterion",
    "postprocessor",
    "train_dataloader",
    "val_dataloader",
    "evaluator",
    "optimizer",
    "lr_scheduler",
    "lr_warmup_scheduler",
    "ema",
    "scaler",
    "num_classes",
    "remap_mscoco_category",
    "use_focal_loss",
    "eval_spatial_size",
]

TRAIN_FLAGS = {
    "-c",
    "--config",
    "-r",
    "--resume",
    "-t",
    "--tuning",
    "-d",
    "--device",
    "--seed",
    "--use-amp",
    "--output-dir",
    "--summary-dir",
    "--test-only",
    "-u",
    "--update",
    "--opt-level",
    "--batch",
    "--log",
}

CHECKPOINT_PREFIXES = {
    "n": (
        "backbone.stem.stem1.",
        "backbone.stem.stem2a.",
        "backbone.stem.stem2b.",
        "backbone.stem.stem3.",
        "backbone.stem.stem4.",
        "backbone.stages.1.downsample.",
        "backbone.stages.0.blocks.0.layers.0.conv.",
        "backbone.stages.0.blocks.0.layers.0.bn.",
        "backbone.stages.0.blocks.0.layers.0.lab.",
        "backbone.stages.2.blocks.0.layers.0.conv1.",
        "backbone.stages.2.blocks.0.layers.0.conv2.",
        "backbone.stages.0.blocks.0.aggregation.0.",
        "backbone.stages.0.blocks.0.aggregation.1.",
        "encoder.input_proj.0.conv.",
        "encoder.input_proj.0.norm.",
        "encoder.encoder.0.layers.0.self_attn.",
        "encoder.encoder.0.layers.0.linear1.",
        "encoder.encoder.0.layers.0.linear2.",
        "encoder.encoder.0.layers.0.norm1.",
        "encoder.encoder.0.layers.0.norm2.",
        "encoder.lateral_convs.0.conv.",
        "encoder.fpn_blocks.0.cv1.",
        "encoder.fpn_blocks.0.cv2.0.conv1.",
        "encoder.fpn_blocks.0.cv2.0.conv2.",
        "encoder.fpn_blocks.0.cv2.0.bottlenecks.0.conv1.",
        "encoder.fpn_blocks.0.cv2.1.",
        "encoder.fpn_blocks.0.cv3.0.",
        "encoder.fpn_blocks.0.cv4.",
        "encoder.downsample_convs.0.0.cv1.",
        "encoder.downsample_convs.0.0.cv2.",
        "encoder.pan_blocks.0.",
        "decoder.up",
        "decoder.reg_scale",
        "decoder.anchors",
        "decoder.valid_mask",
        "decoder.decoder.up",
        "decoder.decoder.reg_scale",
        "decoder.decoder.layers.0.self_attn.",
        "decoder.decoder.layers.0.norm1.",
        "decoder.decoder.layers.0.cross_attn.num_points_scale",
        "decoder.decoder.layers.0.cross_attn.sampling_offsets.",
        "decoder.decoder.layers.0.cross_attn.attention_weights.",
        "decoder.decoder.layers.0.gateway.gate.",
        "decoder.decoder.layers.0.gateway.norm.",
        "decoder.decoder.layers.0.linear1.",
        "decoder.decoder.layers.0.linear2.",
        "decoder.decoder.layers.0.norm3.",
        "decoder.decoder.lqe_layers.0.reg_conf.layers.0.",
        "decoder.denoising_class_embed.weight",
        "decoder.query_pos_head.layers.0.",
        "decoder.enc_output.proj.",
        "decoder.enc_output.norm.",
        "decoder.enc_score_head.",
        "decoder.enc_bbox_head.layers.0.",
        "decoder.dec_score_head.0.",
        "decoder.pre_bbox_head.layers.0.",
        "decoder.dec_bbox_head.0.layers.0.",
    ),
    "x": ("decoder.input_proj.0.conv.", "decoder.input_proj.0.norm."),
}

DINOV3_PREFIXES = (
    "backbone.vit.cls_token",
    "backbone.vit.reg_token",
    "backbone.vit.patch_embed.proj.",
    "backbone.vit.blocks.0.attn.qkv.",
    "backbone.vit.blocks.0.gamma_1",
    "backbone.vit.norm.",
    "backbone.adapter.tap_mix",
    "backbone.adapter.shrink.",
    "backbone.adapter.project.0.",
    "backbone.adapter.detail.layers.0.",
    "backbone.adapter.add_detail.0.",
    "backbone.adapter.norms.0.",
)


@pytest.mark.parametrize("name", COMPONENTS)
def test_component_keeps_its_name_and_arguments(name):
    assert name in names()
    assert set(COMPONENTS[name].split()) - set(find(name).arguments) == set()


@pytest.mark.parametrize(
    ("name", "inject", "share"),
    [
        ("DFINE", "backbone encoder decoder", ""),
        ("HybridEncoder", "", "eval_spatial_size"),
        ("DFINETransformer", "", "num_classes eval_spatial_size"),
        ("DFINECriterion", "matcher", "num_classes"),
        ("HungarianMatcher", "", "use_focal_loss"),
        (
            "DFINEPostProcessor",
            "",
            "num_classes use_focal_loss num_top_queries remap_mscoco_category",
        ),
        ("CocoDetection", "transforms", "remap_mscoco_category"),
        ("DataLoader", "dataset collate_fn", ""),
    ],
)
def test_component_injects_and_shares_what_it_does_in_dfine(
    name, inject, share
):
    assert (find(name).inject, find(name).share) == (
        tuple(inject.split()),
        tuple(share.split()),
    )


@pytest.mark.parametrize("key", TOP_LEVEL_KEYS)
def test_top_level_key_is_known(key):
    assert key in {
        *RunSettings.__dataclass_fields__,
        *BLOCKS,
        *names(),
        *shared_names(),
    }


def test_train_keeps_its_flags():
    text = subprocess.run(
        [sys.executable, "train.py", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert (
        TRAIN_FLAGS - set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))
        == set()
    )


def test_importing_the_configuration_alone_registers_every_class():
    code = (
        "from src.core import register, create, YAMLConfig; "
        f"from src.core.registry import names; print(*(set({list(COMPONENTS)}) - set(names())))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "\n", "")


@pytest.mark.parametrize("size", CHECKPOINT_PREFIXES)
def test_checkpoint_keeps_the_attribute_names_of_dfine(size):
    keys = list(coco_config(size).model.state_dict())
    assert [
        prefix
        for prefix in CHECKPOINT_PREFIXES[size]
        if not any(key.startswith(prefix) for key in keys)
    ] == []


def test_checkpoint_keeps_the_attribute_names_of_the_dinov3_backbone():
    keys = list(tiny_config().model.state_dict())
    assert [
        prefix
        for prefix in DINOV3_PREFIXES
        if not any(key.startswith(prefix) for key in keys)
    ] == []
