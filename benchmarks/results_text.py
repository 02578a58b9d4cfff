"""What docs/results.md says in words; its figures come from benchmarks/results.py."""

INTRODUCTION = """
# Results: quality against depth, against time

SmolLM2-135M-Instruct (30 layers) fine-tuned on two data sets, each in two ways: **trained plainly**, every batch at
full depth on the references, and **trained to skip**, each example under a strategy of its own
([training.md](training.md)), on the texts that the plainly trained model writes for the training sources
(`data.targets`, sequence-level distillation): on E2E greedily, on CommonGen with 4 beams. Most of CommonGen's training
sources have 3 concepts and all of its test sources 4 or 5, so there the teacher also writes for as many longer ones,
made of the training set (`python -m benchmarks.longer_concept_sets`). Both start from the same pretrained model, with
the same LoRA; steps and learning rates are given with each set. One model that was trained to skip serves all settings;
`configs/results` trains them. How far each validation loss fell stands with its set. What a teacher writes with 4
beams, and for sources as long as the test's, may lift the model that learns it above 100 % of the plain model's greedy
figures.

This page is written by `python -m benchmarks.results` out of [docs/results](results), and `make results` decodes what
is missing there with the adapters that come with hsdlab.

- A cell holds the figure on the whole test set, its 95 % bootstrap interval over the sources, and its share of the same
  model's own full depth with the interval of that share. References: all of each source.
- Texts are decoded greedily in bfloat16, 64 sources at a time; where it says so with 4 beams, on 200 sources.
- Layers are means over the decode steps of the returned texts; the prompt runs at full depth. They are no speed-up.
- Tokens are the mean length of the texts, end of sequence included: BLEU punishes texts that are short.
- Milliseconds per decode step are of `evaluate.py bench` on a model that was trained to skip: batch 1, greedy,
  float32, the sides take turns, so that all see the same machine; medians. A bench decodes all T tokens, and late steps
  run fewer layers than early ones, so it has an average depth of its own: in brackets. Which layers a schedule runs
  does not depend on the weights; where CALM leaves does, so its time stands beside that model's rows alone.
- `HSD(1, 0, 0)` and `HSD(2, 0, 0)` run every second and every third layer in every step, `StaticDepth` the same 15
  layers. Neither they nor CALM were trained for: beside the plain model's rows they are baselines, beside the others
  they show how far training for some schedules carries to another.
- `HSD(2, 0, 7, power)`, whose budget falls as a square, stands with CommonGen alone: of six settings of 14.7 to 15.0
  layers it had the highest BLEU-4 on the 397 validation sources of 4 and 5 concepts. It was not trained for either.
- Data: E2E is the whole official training and test set. CommonGen is the whole test set and a draw of 10,000 of its
  32,470 training sets. `hsdlab data prepare e2e_nlg` and `hsdlab data prepare common_gen` write both, byte for byte.
- A dash, or a row that is missing, was not measured yet.
- ROUGE is `rouge_score`'s, BLEU `sacrebleu`'s, cased, BERTScore with all-MiniLM-L6-v2, unscaled.
"""

GOALS = """
The goals are against the plainly trained model at full depth. For each, the setting of the model trained to skip that
comes nearest; its weakest metric decides. Times: median and quartiles over the bench's rounds.
"""

PUBLISHED = """
The HSD paper's own rows (arXiv 2403.14919, its tables for this set), as percentages of their full model, beside ours.
Its GPT-2 has 36 layers, Phi-2 32; depth is a percentage of them. Layers · ROUGE-L · BLEU-1 · BERTScore:
"""

TUNED = """
`evaluate.py tune --config configs/results/tune_{data}.yaml` ([tuning.md](tuning.md)): which setting of the model that
was trained to skip is the fastest that keeps {kept} of its own full depth, on {examples} examples of the validation
split? Of {tried} different settings these are the frontier of speed and score, the negative log-likelihood of full
depth's texts. {decoded} of them were decoded, by bisection; the others have no share, and their layers, in brackets,
are what the search expects. The settings that the model was trained for were tried first (`--first`); so short a search
may miss the best of the others.
"""

READING = """
**What reproduces.** The cost does: the layers that run follow from the settings alone, so the paper's average depths
come out as they should ([reconstruction.md](reconstruction.md) has all 80), and a decode step takes less time as they
say: the table above has the stopwatch. So does CALM's fall: with the thresholds as we read them it leaves our plainly
trained model after {calm_layers} of its layers and keeps {calm_share} of its ROUGE-L on E2E, where the paper's GPT-2
has {published_calm_layers} and {published_calm_share} (`CALM(depth, 0.02)`). The paper's quality comes out too, once
the model was trained as it decodes: `HSD(1, 0, 18)` keeps {aware_share} of its own ROUGE-L on E2E, where the paper's
GPT-2 keeps {published_share} at {published_layers} of the layers, and `HSD(2, 0, 8)` keeps {aware_half} (paper:
{published_half}).

**What does not reproduce** is that plain training is enough: our plainly trained model keeps {plain_share} under
`HSD(1, 0, 18)`, and the order of the methods among such ruins says little. Three things differ, and we did not
separate them: the model (135M parameters and 30 narrow layers against 774M and 2.7B; on ours, `evaluate.py inspect`
finds that the prediction still changes up to layer 27 of 30), what the paper does not say of its training, and its
rule, which we had to reconstruct. CommonGen stays harder than E2E when layers are skipped: a sentence has to be
thought of there, not only put into words.
"""
