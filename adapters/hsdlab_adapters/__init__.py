"""The adapters of hsdlab's results, one folder each. There is no code here: hsdlab reads the folders."""
