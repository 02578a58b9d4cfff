"""What docs/results.md says in words; its figures come from benchmarks/results.py."""

INTRODUCTION = """
# Results: quality against depth and time

SmolLM2-135M-Instruct (30 layers) was fine-tuned on two data sets, on each in two ways:

- **Trained plainly**: every batch at full depth, on the references.
- **Trained to skip** ([training](training.md)): each example draws its own strategy. The training targets are the texts
  that the plainly trained model writes for the training sources (`data.targets`, sequence-level distillation). On E2E
  that teacher decodes greedily, on CommonGen with 4 beams. Most of CommonGen's training sources have 3 concepts, and
  all of its test sources have 4 or 5. So the teacher also writes texts for as many longer sources, which
  `python -m benchmarks.longer_concept_sets` makes from the training set. Texts decoded with 4 beams are better than
  greedy ones, so this model may exceed 100 % of the plain model's greedy figures.

Both start from the same pretrained model, with the same LoRA. Steps and learning rates are given with each set. One
model that was trained to skip serves all settings. The configs in `configs/results` repeat the trainings.

`python -m benchmarks.results` writes this page from the JSON files in `docs/results`. `make results` decodes what is
missing there, with the adapters of `adapters/` (`pip install ./adapters`).

Neither model was trained for early exit. For CALM and other exits on a model that was, see [early exit](early_exit.md).

## How to read the tables

- A cell holds the figure on the whole test set, with its 95 % bootstrap interval over the sources. The second line is
  the percentage of the same model's figure at full depth, with its interval. All references of a source are used.
- Texts are decoded greedily in bfloat16, 64 sources at a time. The tables with 4 beams are on 200 sources.
- The average depth is the mean number of layers per decode step of the returned texts. The prefill runs at full depth
  and is not counted. A smaller depth is not yet a speed-up.
- Tokens are the mean length of the texts, end of sequence included. BLEU punishes texts that are short.
- Milliseconds per decode step are medians of `hsdlab bench` on a model that was trained to skip: batch size 1,
  greedy, float32, strategies timed in alternation. A bench decodes all T tokens, and late steps run fewer layers than
  early ones. So its average depth differs from that of the texts. It is given in brackets. The layers of a schedule do
  not depend on the weights, so its time holds for both models. CALM's exits depend on them, so its time is given for
  the model trained to skip only.
- `HSD(1, 0, 0)` and `HSD(2, 0, 0)` run every second and every third layer in every step. `StaticDepth` runs the same 15
  layers. The models were not trained for these settings, nor for CALM. For the plain model they are further baselines.
  For the model trained to skip they show how well training for some schedules works for another schedule.
- `HSD(2, 0, 7, power)`, whose layer budget falls quadratically, is given for CommonGen only. It had the highest BLEU-4
  of six settings of 14.7 to 15.0 layers, on the 397 validation sources of 4 and 5 concepts. The model was not trained
  for this setting either.
- Data: E2E is the whole official training and test set. CommonGen is the whole test set and a draw of 10,000 of its
  32,470 training sets. `hsdlab data prepare e2e_nlg` and `hsdlab data prepare common_gen` write both, byte for byte.
- A dash, or a missing row, was not measured yet.
- ROUGE is `rouge_score`'s, BLEU is `sacrebleu`'s, cased, and BERTScore uses all-MiniLM-L6-v2, not rescaled.
"""

GOALS = """
The goals are relative to the plainly trained model at full depth. Each row gives the setting of the model trained to
skip that comes nearest to the goal. Of the three metrics, the smallest percentage decides. Times are medians and
quartiles over the rounds of the bench.
"""

PUBLISHED = """
The figures of the HSD paper (arXiv 2403.14919, its tables for this set) beside ours, each as a percentage of its own
model at full depth. The paper's GPT-2 has 36 layers, Phi-2 has 32. Layers are a percentage of these. A cell holds
layers · ROUGE-L · BLEU-1 · BERTScore:
"""

TUNED = """
`hsdlab tune --config configs/results/tune_{data}.yaml` ([tuning](tuning.md)) searches for the fastest setting that
keeps {kept} of full depth, for the model trained to skip, on {examples} examples of the validation split.

It tried {tried} different settings. The table shows the frontier of speed and score. The score is the negative
log-likelihood of full depth's texts. `tune` decoded {decoded} settings, chosen by bisection. The others have no share,
and their depth in brackets is computed from the schedule. The settings that the model was trained for were tried first
(`--first`). So short a search may miss better settings among the others.
"""

READING = """
**What reproduces.**

- The cost. The executed layers follow from the settings alone, so the average depths equal those of the paper
  ([reconstruction](reconstruction.md) has all 80). The measured times of decode steps fall with the depth.
- CALM's loss of quality. With the thresholds as we read them, `CALM(depth, 0.02)` exits our plainly trained model after
  {calm_layers} of its layers and keeps {calm_share} of its ROUGE-L on E2E. The paper's GPT-2 has
  {published_calm_layers} and {published_calm_share}.
- The paper's quality, if the model was trained to skip. `HSD(1, 0, 18)` keeps {aware_share} of its own ROUGE-L
  on E2E, where the paper's GPT-2 keeps {published_share} at {published_layers} of the layers. `HSD(2, 0, 8)` keeps
  {aware_half} (paper: {published_half}).

**What does not reproduce** is that plain training is enough. Our plainly trained model keeps {plain_share} under
`HSD(1, 0, 18)`. At so low a quality, the order of the methods says little. Three things differ, and we did not separate
them:

- The model: 135M parameters and 30 narrow layers against 774M and 2.7B. On ours, `hsdlab inspect` finds that the
  prediction still changes up to layer 27 of 30.
- The training: the paper does not describe all of it.
- The schedule: we had to reconstruct it.

CommonGen loses more than E2E when layers are skipped. There the model has to invent a sentence. On E2E it only has to
phrase given facts.
"""
