"""Names of COCO's twelve metrics, in the order of its evaluation."""

METRICS = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR1",
    "AR10",
    "AR100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
"""Average precision and average recall; values are fractions of 1."""
