"""Reporting: tables, pictures and TensorBoard events, made from records and from nothing else."""
