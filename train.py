"""Fine-tune a model, at full depth or as it will be decoded: see `python train.py --help`."""

from hsdlab.train_cli import main

if __name__ == "__main__":
    main()
