"""Evaluate: metrics with intervals, per class and per slice, and calibration."""

HEADLINES = (
    "accuracy", "top_5_accuracy", "subset_accuracy", "hamming", "precision", "recall", "f1", "f1_macro", "mcc",
    "log_loss", "ece", "roc_auc", "pr_auc", "mae", "rmse", "r2", "pearson", "perplexity", "bits_per_byte",
)  # fmt: skip
"""What a person is told first; `--json` and metrics.json have all."""
