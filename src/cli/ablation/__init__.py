"""Ablation studies: plans of variants over seeds, the runs that they need, and tables of the results."""
