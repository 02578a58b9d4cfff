"""What docs/results.md says in words; its figures come from benchmarks/results.py."""

INTRODUCTION = """
# Results: quality against depth and time

SmolLM2-135M-Instruct (30 layers) was fine-tuned on two data sets, on each in two ways:

- **Trained plainly**: every batch at full depth, on the references.
- **Trained to skip** ([training](training.md)): each example under a strategy of its own, on the texts that the plainly
  trained model writes for the training sources (`data.targets`, sequence-level distillation). On E2E that model writes
  greedily, on CommonGen with 4 beams. Most of CommonGen's training sources have 3 concepts and all of its test sources
  have 4 or 5. So there the teacher also writes for as many longer sources, which
  `python -m benchmarks.longer_concept_sets` makes from the training set. Better texts may lift this model above 100 %
  of the plain model's greedy figures.

Both start from the same pretrained model, with the same LoRA. Steps and learning rates are given with each set. One
model that was trained to skip serves all settings. `configs/results` trains them.

`python -m benchmarks.results` writes this page from the JSON files in `docs/results`. `make results` decodes what is
missing there, with the adapters of `adapters/` (`pip install ./adapters`).

## How to read the tables

- A cell holds the figure on the whole test set with its 95 % bootstrap interval over the sources. Below is its share of
  the same model's own full depth, with the interval of that share. All references of a source are used.
- Texts are decoded greedily in bfloat16, 64 sources at a time. The tables with 4 beams are on 200 sources.
- Layers are means over the decode steps of the returned texts. The prompt runs at full depth. They are no speed-up.
- Tokens are the mean length of the texts, end of sequence included. BLEU punishes texts that are short.
- Milliseconds per decode step are medians of `hsdlab bench` on a model that was trained to skip: batch size 1,
  greedy, float32, strategies timed in alternation. A bench decodes all T tokens, and late steps run fewer layers than
  early ones. So it has an average depth of its own, in brackets. A schedule's layers do not depend on the weights.
  CALM's exits do, so its time is given for that model only.
- `HSD(1, 0, 0)` and `HSD(2, 0, 0)` run every second and every third layer in every step. `StaticDepth` runs the same 15
  layers. The models were not trained for these, nor for CALM. With the plain model they are baselines. With the other
  model they show how far training for some schedules carries to another.
- `HSD(2, 0, 7, power)`, whose budget falls as a square, is given for CommonGen only. Of six settings of 14.7 to 15.0
  layers it had the highest BLEU-4 on the 397 validation sources of 4 and 5 concepts. It was not trained for either.
- Data: E2E is the whole official training and test set. CommonGen is the whole test set and a draw of 10,000 of its
  32,470 training sets. `hsdlab data prepare e2e_nlg` and `hsdlab data prepare common_gen` write both, byte for byte.
- A dash, or a row that is missing, was not measured yet.
- ROUGE is `rouge_score`'s, BLEU is `sacrebleu`'s, cased, and BERTScore uses all-MiniLM-L6-v2, not rescaled.
"""

GOALS = """
The goals are relative to the plainly trained model at full depth. Each row gives the setting of the model trained to
skip that comes nearest. Its weakest metric decides. Times are medians and quartiles over the rounds of the bench.
"""

PUBLISHED = """
The HSD paper's own rows (arXiv 2403.14919, its tables for this set) as percentages of its full model, beside ours. Its
GPT-2 has 36 layers, Phi-2 has 32. Depth is a percentage of them. Layers · ROUGE-L · BLEU-1 · BERTScore:
"""

TUNED = """
`hsdlab tune --config configs/results/tune_{data}.yaml` ([tuning](tuning.md)) answers: which setting of the model
that was trained to skip is the fastest that keeps {kept} of its own full depth, on {examples} examples of the
validation split?

It tried {tried} different settings. The table shows the frontier of speed and score, where the score is the negative
log-likelihood of full depth's texts. {decoded} settings were decoded, by bisection. The others have no share. Their
layers, in brackets, are what the search expects. The settings that the model was trained for were tried first
(`--first`). So short a search may miss the best of the others.
"""

READING = """
**What reproduces.**

- The cost. The executed layers follow from the settings alone, so the average depths come out as in the paper
  ([reconstruction](reconstruction.md) has all 80). Measured times of decode steps fall with them.
- CALM's loss. With the thresholds as we read them, `CALM(depth, 0.02)` exits our plainly trained model after
  {calm_layers} of its layers and keeps {calm_share} of its ROUGE-L on E2E. The paper's GPT-2 has
  {published_calm_layers} and {published_calm_share}.
- The paper's quality, once the model was trained as it decodes. `HSD(1, 0, 18)` keeps {aware_share} of its own ROUGE-L
  on E2E, where the paper's GPT-2 keeps {published_share} at {published_layers} of the layers. `HSD(2, 0, 8)` keeps
  {aware_half} (paper: {published_half}).

**What does not reproduce** is that plain training is enough. Our plainly trained model keeps {plain_share} under
`HSD(1, 0, 18)`. At so low a quality, the order of the methods says little. Three things differ, and we did not separate
them:

- The model: 135M parameters and 30 narrow layers against 774M and 2.7B. On ours, `hsdlab inspect` finds that the
  prediction still changes up to layer 27 of 30.
- What the paper does not say of its training.
- Its rule, which we had to reconstruct.

CommonGen stays harder than E2E when layers are skipped. There the model has to invent a sentence, not only to phrase
given facts.
"""
