"""Fine-tune a model, or train an exit classifier for it: see `python train.py --help`."""

from hsdlab.cli.commands import train

if __name__ == "__main__":
    train()
