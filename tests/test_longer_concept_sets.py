"""benchmarks/longer_concept_sets.py makes concept sets as long as the tests', out of what references mention."""

from benchmarks.longer_concept_sets import longer
from hsdlab.data.batches import Example

EXAMPLES = [
    Example("a", "ski mountain skier", ("Skiers are skiing down the snowy mountains.", "A dog skis on a lake.")),
    Example("b", "snow dog lake walk", ("She walked her dog by the frozen lake in the snow, down a mountain.",)),
    Example("c", "play drum", ("A skier plays drums.",)),
]


def sets(examples):
    return [frozenset(example.source.split()) for example in examples]


def test_a_new_set_is_an_old_one_with_more_of_what_its_reference_mentions():
    new = {each.id: each for each in longer(EXAMPLES, frozenset())}
    assert sorted(new["a-longer-0"].source.split()) == ["mountain", "ski", "skier", "snow"]
    assert new["a-longer-0"].references == ("Skiers are skiing down the snowy mountains.",)
    assert {"ski", "mountain", "skier"} < set(new["a-longer-1"].source.split())
    assert set(new["a-longer-1"].source.split()) <= {"ski", "mountain", "skier", "dog", "lake"}
    assert sorted(new["b-longer-0"].source.split()) == ["dog", "lake", "mountain", "snow", "walk"]
    assert "c-longer-0" not in new  # three concepts in all


def test_sets_of_the_other_splits_do_not_come_about_and_none_comes_twice():
    tested = frozenset({"mountain", "ski", "skier", "snow"})
    again = [*EXAMPLES, Example("d", "mountain snow ski", ("The skier skis on the snowy mountain.",))]
    new = sets(longer(again, frozenset()))
    assert tested in new
    assert len(new) == len(set(new))
    assert not set(new) & set(sets(again))
    assert tested not in sets(longer(again, {tested}))


def test_the_choice_depends_on_the_seed_only():
    assert longer(EXAMPLES, frozenset(), seed=1) == longer(EXAMPLES, frozenset(), seed=1)
    sources = {longer(EXAMPLES, frozenset(), seed=seed)[0].source for seed in range(5)}
    assert len(sources) > 1
