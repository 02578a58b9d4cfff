"""Fine-tune a model, or train an exit classifier for it: see `python train.py --help`."""

from hsdlab.cli.train import main

if __name__ == "__main__":
    main()
