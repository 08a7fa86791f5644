"""Functions of a user's own: what they draw depends on the key alone, and nobody else's generators are disturbed."""

import functools
import multiprocessing
import pickle
import random
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

import feeder
import feeder.foreign
from feeder.errors import ConfigError, TransformError
from feeder.foreign import PerSample, apply_field, batched, describe, per_sample, split
from feeder.foreign.functions import shown_as, takes_rng
from tests.images import picture
from tests.peers import peer

KEYS = list(range(24))


@pytest.fixture
def pixels() -> np.ndarray:
    return np.asarray(picture(3, size=(32, 24))).copy()


def global_noise(pixels: np.ndarray) -> np.ndarray:
    """Draws from the generators of the process, often enough that another thread would come between."""
    numbers = [random.randrange(256) for _ in range(200)] + list(np.random.randint(0, 256, 200))  # noqa: NPY002
    if "torch" in sys.modules:
        numbers += sys.modules["torch"].randint(0, 256, (200,)).tolist()
    return np.array(numbers)


def own_noise(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, 600)


def keyword_noise(pixels: np.ndarray, *, rng: np.random.Generator | None = None) -> np.ndarray:
    assert rng is not None
    return rng.integers(0, 256, 600)


class Noise:
    """A callable object."""

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return rng.integers(0, 256, 600)


FUNCTIONS = [global_noise, own_noise, keyword_noise, Noise()]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_same_key_gives_the_same_result_whatever_the_threads(function: Any, pixels: np.ndarray) -> None:
    transform = per_sample(function)
    alone = [transform(pixels, key) for key in KEYS]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda key: transform(pixels, key), KEYS * 3))
    np.testing.assert_array_equal(together, alone * 3)
    assert len({result.tobytes() for result in alone}) == len(KEYS)


def test_each_place_in_line_draws_its_own(pixels: np.ndarray) -> None:
    seen = []

    def note(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        seen.append(rng.random())
        return value

    per_sample([note, note])(pixels, 5)
    assert len(set(seen)) == 2


def test_the_results_are_these(pixels: np.ndarray) -> None:
    """Pinned, since a resumed training goes on with them."""
    assert per_sample(own_noise)(pixels, 7)[:4].tolist() == OWN
    random_numbers = per_sample(global_noise)(pixels, 7)
    assert random_numbers[:4].tolist() == OF_RANDOM
    assert random_numbers[200:204].tolist() == OF_NUMPY


OWN = [212, 191, 48, 96]
OF_RANDOM = [217, 134, 196, 84]
OF_NUMPY = [98, 211, 128, 216]


def test_the_generators_of_the_process_go_on_as_if_nothing_had_been(pixels: np.ndarray) -> None:
    torch = peer("torch")

    def draws() -> list[float]:
        return [random.random(), np.random.standard_normal(), float(torch.rand(1)), random.gauss(0, 1)]  # noqa: NPY002

    def seed() -> None:
        random.seed(3)
        np.random.seed(3)  # noqa: NPY002
        torch.manual_seed(3)

    seed()
    undisturbed = [draws() for _ in range(3)]
    seed()
    disturbed = []
    for key in range(3):
        disturbed.append(draws())
        per_sample(global_noise)(pixels, key)
        with pytest.raises(TransformError):
            per_sample(_fails)(pixels, key)
        apply_field(str, ["a", "b"], [1, 2])
    assert disturbed == undisturbed


def _fails(pixels: np.ndarray) -> np.ndarray:
    random.random()
    raise ValueError("the colours are wrong")


def test_what_a_function_raises_is_the_cause_of_an_error_that_names_it(pixels: np.ndarray) -> None:
    with pytest.raises(TransformError) as caught:
        per_sample(_fails)(pixels, 0)
    line = _fails.__code__.co_firstlineno
    sentence = f"transform _fails ({__file__}:{line}) raised ValueError: the colours are wrong"
    assert str(caught.value) == sentence
    assert isinstance(caught.value.__cause__, ValueError)
    placed = caught.value.at("sample 17 ('ant/ant-03')")
    assert str(placed) == f"{sentence}; at sample 17 ('ant/ant-03')"
    assert placed.__cause__ is caught.value.__cause__
    assert str(pickle.loads(pickle.dumps(placed))) == str(placed)


def test_an_error_of_ours_within_a_function_stays_what_it_is(pixels: np.ndarray) -> None:
    def ours(pixels: np.ndarray) -> np.ndarray:
        raise ConfigError("said already")

    with pytest.raises(ConfigError, match="^said already$"):
        per_sample(ours)(pixels, 0)


def test_a_function_that_forgets_to_return_is_told_so(pixels: np.ndarray) -> None:
    def forgets(pixels: np.ndarray) -> None:
        pass

    with pytest.raises(TransformError) as caught:
        per_sample(forgets)(pixels, 0)
    assert str(caught.value).endswith("returned NoneType; give back an array, a tensor or a PIL image")
    assert str(caught.value).startswith(
        "transform test_a_function_that_forgets_to_return_is_told_so.<locals>.forgets ("
    )


def test_a_type_that_arrays_lack_is_refused(pixels: np.ndarray) -> None:
    torch = peer("torch")

    def half(pixels: np.ndarray) -> Any:
        return torch.zeros(3, dtype=torch.bfloat16)

    with pytest.raises(TransformError) as caught:
        per_sample(half)(pixels, 0)
    assert str(caught.value).endswith(" returned bfloat16, which arrays lack; give back float32")
    with pytest.raises(TransformError) as caught:
        per_sample(lambda pixels: torch.zeros(3).to_sparse())(pixels, 0)
    assert str(caught.value).endswith(" returned sparse_coo, which arrays lack; give back float32")
    with pytest.raises(TransformError) as caught:
        per_sample(lambda pixels: np.array(["a"]))(pixels, 0)
    assert str(caught.value).endswith(
        " returned an array of <U1, which no batch holds; give back numbers, such as float32"
    )
    assert per_sample(lambda pixels: np.ones(2, ">f4"))(pixels, 0).dtype == np.float32


def test_a_long_message_is_cut(pixels: np.ndarray) -> None:
    def fails(pixels: np.ndarray) -> Any:
        raise ValueError("no\n" * 1000)

    with pytest.raises(TransformError) as caught:
        per_sample(fails)(pixels, 0)
    assert str(caught.value).endswith(" raised ValueError: " + "no " * 100 + "…")


def test_pil_images_are_not_made_of_floats(pixels: np.ndarray) -> None:
    with pytest.raises(ConfigError) as caught:
        shown_as("pil", pixels.astype(np.float32))
    assert str(caught.value) == "an operation that takes PIL images stands behind Normalize; put Normalize last"


def test_who_takes_rng() -> None:
    def positional(value: Any, rng: Any, /) -> Any:
        return value

    assert [
        takes_rng(function) for function in (own_noise, keyword_noise, Noise(), functools.partial(own_noise, 1))
    ] == [True] * 4
    filled = functools.partial(own_noise, rng=np.random.default_rng(0))
    assert [takes_rng(function) for function in (global_noise, np.asarray, len, filled, positional)] == [False] * 5


def test_how_functions_run() -> None:
    rows = describe([feeder.RandomResizedCrop(8), own_noise, global_noise])
    assert [row.where for row in rows] == ["engine", "per sample", "per sample"]
    assert rows[0].why == f"as {feeder.RandomResizedCrop(8)}"
    assert rows[1].why == "a function, of which nothing is known; in all threads: draws from its rng"
    assert rows[2].why == (
        f"stands behind own_noise ({__file__}:{own_noise.__code__.co_firstlineno}); one at a time: random, numpy.random"
        " and torch are seeded for each sample"
    )


def test_ours_and_functions_keep_their_order() -> None:
    normalize = feeder.Normalize((0, 0, 0), (1, 1, 1))
    geometry, following = split([feeder.Resize((8, 8)), own_noise, keyword_noise, normalize, global_noise])
    assert geometry == [feeder.Resize((8, 8))]
    assert [getattr(step, "names", None) is not None for step in following] == [True, False, True]
    assert len(following[0].stages) == 2
    assert following[1] is normalize


@pytest.mark.parametrize(
    ("transform", "sentence"),
    [
        ([], "got no transform; give one, such as feeder.RandomResizedCrop(224), or a list of them"),
        (
            [feeder.RandomResizedCrop(8), 3],
            "3 is no transform; give operations of feeder, torchvision or albumentations, or functions of pixels",
        ),
        (feeder.Resize, "Resize was given as a class: write Resize(…) with its arguments"),
    ],
)
def test_what_is_no_transform_is_refused(transform: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        split(transform)
    assert str(caught.value) == sentence


def _child(transform: PerSample, pixels: np.ndarray, queue: Any) -> None:
    queue.put(transform(pixels, 7))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_other_processes_draw_the_same(method: str, pixels: np.ndarray) -> None:
    context = multiprocessing.get_context(method)
    transform, queue = per_sample([own_noise if method == "spawn" else global_noise]), context.Queue()
    process = context.Process(target=_child, args=(transform, pixels, queue))
    process.start()
    np.testing.assert_array_equal(queue.get(timeout=60), transform(pixels, 7))
    process.join()


def test_a_lambda_cannot_be_sent_to_a_spawned_process(pixels: np.ndarray) -> None:
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_child, args=(per_sample(lambda pixels: pixels), pixels, None))
    with pytest.raises(ConfigError) as caught:
        process.start()
    assert str(caught.value).startswith("transform holds a function that cannot be sent to a worker process (")
    assert str(caught.value).endswith(
        "); write it with def at the top of a module, in place of a lambda or a function within a function, or start"
        " workers with 'fork'"
    )


def test_a_process_forked_while_the_lock_is_held_goes_on(pixels: np.ndarray) -> None:
    from feeder.foreign.seeding import ALL, alone

    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_child, args=(per_sample(global_noise), pixels, queue))
    with ThreadPoolExecutor(1) as pool, alone(ALL):
        pool.submit(process.start).result()  # from a thread that does not hold it
    assert queue.get(timeout=60).shape[0] >= 400
    process.join()


class TestFields:
    def test_one_result_for_each_value(self) -> None:
        assert apply_field(len, ["a", "bcd"], [1, 2]) == [1, 3]
        assert apply_field(len, [], []) == []

    def test_draws_depend_on_the_key_alone(self) -> None:
        def one(value: str, rng: np.random.Generator) -> float:
            return rng.random()

        both = apply_field(one, ["a", "b"], [1, 2])
        assert both == [*apply_field(one, ["a"], [1]), *apply_field(one, ["b"], [2])]
        noise = apply_field(global_noise, ["a", "b"], [1, 2])
        np.testing.assert_array_equal(noise[1], apply_field(global_noise, ["b"], [2])[0])

    def test_a_batched_function_gets_the_list(self) -> None:
        @batched
        def lengths(values: list[str]) -> np.ndarray:
            assert values == ["a", "bcd"]
            return np.array([[len(value)] * 2 for value in values])

        np.testing.assert_array_equal(apply_field(lengths, ["a", "bcd"], [1, 2]), [[1, 1], [3, 3]])
        assert apply_field(lengths, [], []) == []

    @pytest.mark.parametrize(("result", "count"), [([1], 1), (7, 1), ({}, 0)])
    def test_a_batched_function_returns_one_for_each(self, result: Any, count: int) -> None:
        def wrong(values: list[str]) -> Any:
            return result

        with pytest.raises(TransformError) as caught:
            apply_field(batched(wrong), ["a", "b"], [1, 2])
        assert str(caught.value).endswith(
            f"returned {count} results for 2 values; a batched function returns one for each, in their order"
        )

    def test_a_batched_function_does_not_draw(self) -> None:
        with pytest.raises(ConfigError) as caught:
            batched(own_noise)
        assert str(caught.value).endswith(
            "is batched and takes rng; how many values come together depends on threads, and so would what is drawn:"
            " write a function of one value"
        )

    def test_what_it_raises_names_it(self) -> None:
        with pytest.raises(TransformError) as caught:
            apply_field(int, ["a"], [1])
        assert str(caught.value) == (
            "map_fields: function int raised ValueError: invalid literal for int() with base 10: 'a'"
        )

    def test_what_is_no_function_is_refused(self) -> None:
        with pytest.raises(ConfigError) as caught:
            apply_field(3, ["a"], [1])  # type: ignore[arg-type]
        assert str(caught.value) == "map_fields got 3; give a function of a value, as in {'caption': tokenize}"


def test_the_generators_of_a_sample_draw_different_numbers(pixels: np.ndarray) -> None:
    torch = peer("torch")

    def draws(pixels: np.ndarray) -> np.ndarray:
        return np.array([random.random(), np.random.random(), float(torch.rand(1).double())])  # noqa: NPY002

    for key in range(3):
        assert len(np.unique(per_sample(draws)(pixels, key << 40 | key))) == 3
