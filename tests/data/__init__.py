"""A package, so that its test_base.py and another folder's can both be collected."""
