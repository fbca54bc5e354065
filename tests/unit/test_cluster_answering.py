"""No question is lost, whoever dies when."""

import asyncio
import random

import pytest

from cluster.answering import Answerer, NobodyLeftError, QuestionDesk


class Room:
    """Answers to the questions 0, 1, 2..., by answerers that die as they are told."""

    def __init__(self, number: int, *, at_once: int = 3) -> None:
        self.answers: dict[int, str] = {}
        self.given_up: dict[int, str] = {}
        self.most_read = 0
        self.desk: QuestionDesk[int, str] = QuestionDesk(
            questions=self._read(number), keep=self._keep, give_up=self.given_up.__setitem__, at_once=at_once
        )

    def _read(self, number: int):
        for question in range(number):
            self.most_read = max(self.most_read, question + 1 - len(self.answers))
            yield question

    def _keep(self, question: int, answer: str) -> None:
        assert question not in self.answers
        self.answers[question] = answer

    def answerer(self, name: str, *, dies_after: int | None = None, poison: tuple[int, ...] = ()) -> Answerer[int, str]:
        count = 0

        async def ask(question: int) -> str:
            nonlocal count
            await asyncio.sleep(0)
            count += 1
            if question in poison or (dies_after is not None and count > dies_after):
                raise RuntimeError(f"{name} fell over question {question}")
            return f"{name}: {question}"

        return Answerer(name=name, ask=ask)

    def serve(self, *answerers: Answerer[int, str]) -> None:
        asyncio.run(asyncio.wait_for(self.desk.serve(answerers), 20))


@pytest.mark.parametrize("answerers", [1, 2, 5])
def test_every_question_is_answered_once(answerers: int) -> None:
    room = Room(100)
    room.serve(*(room.answerer(f"a{n}") for n in range(answerers)))
    assert sorted(room.answers) == list(range(100)) and not room.given_up


def test_questions_are_read_as_they_are_handed_out() -> None:
    room = Room(100, at_once=4)
    room.serve(room.answerer("a"), room.answerer("b"))
    assert room.most_read <= 2 * 4 + 1


@pytest.mark.parametrize("dies_after", [0, 1, 7, 39])
def test_the_questions_of_a_dead_one_go_to_the_others(dies_after: int) -> None:
    room = Room(40)
    room.serve(room.answerer("mortal", dies_after=dies_after), room.answerer("other"))
    assert sorted(room.answers) == list(range(40))
    assert sum(answer.startswith("mortal") for answer in room.answers.values()) <= dies_after


def test_a_death_after_all_others_have_finished_still_loses_nothing() -> None:
    """The last question hangs with one answerer that then dies, while the other one has nothing left to do."""
    room = Room(2, at_once=1)
    waits = asyncio.Event()

    async def hang(question: int) -> str:
        await waits.wait()
        raise RuntimeError("gone")

    async def answer(question: int) -> str:
        if question == 1:
            asyncio.get_running_loop().call_later(0.05, waits.set)
        return "ok"

    room.serve(Answerer(name="hangs", ask=hang), Answerer(name="works", ask=answer))
    assert sorted(room.answers) == [0, 1]


def test_when_all_die_it_says_so_and_keeps_what_there_is() -> None:
    room = Room(40)
    with pytest.raises(NobodyLeftError, match=r"all 2 of them died; the last one: .* fell over question"):
        room.serve(room.answerer("a", dies_after=5), room.answerer("b", dies_after=9))
    assert 9 <= len(room.answers) <= 14


def test_a_question_that_answerers_die_of_is_given_up_and_innocent_ones_are_not() -> None:
    room = Room(30)
    room.serve(*(room.answerer(f"a{n}", poison=(4,)) for n in range(4)))
    assert sorted(room.answers) == [n for n in range(30) if n != 4]
    assert list(room.given_up) == [4] and "3 rollout actors died while answering it" in room.given_up[4]


@pytest.mark.parametrize("deaths", [1, 3])
def test_one_takes_the_place_of_each_that_died(deaths: int) -> None:
    room = Room(60)
    lives = iter([7] * deaths)

    async def replace() -> Answerer[int, str]:
        await asyncio.sleep(0.001)
        return room.answerer("successor", dies_after=next(lives, None))

    room.desk.replace = replace
    room.serve(room.answerer("mortal", dies_after=7))
    assert sorted(room.answers) == list(range(60)) and not room.given_up
    assert len(room.desk._answerers) == 2 + deaths


def test_no_successor_is_waited_for_once_all_is_answered() -> None:
    room = Room(40)
    ended: list[str] = []

    async def replace() -> Answerer[int, str]:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append("half started")
        raise AssertionError

    room.desk.replace = replace
    room.serve(room.answerer("mortal", dies_after=3), room.answerer("other"))
    assert sorted(room.answers) == list(range(40)) and ended == ["half started"]


def test_when_there_is_to_be_no_successor_the_reason_is_told() -> None:
    room = Room(40)

    async def replace() -> Answerer[int, str]:
        raise RuntimeError("16 have died within an hour")

    room.desk.replace = replace
    with pytest.raises(NobodyLeftError, match="all 1 of them died; the last one: 16 have died within an hour"):
        room.serve(room.answerer("mortal", dies_after=3))


def test_a_successor_answers_what_others_were_suspected_to_have_died_of() -> None:
    room = Room(12)
    poison: tuple[int, ...] = (4,)

    async def replace() -> Answerer[int, str]:
        return room.answerer("successor", poison=poison)

    room.desk.replace = replace
    room.serve(room.answerer("first", poison=poison))
    assert sorted(room.answers) == [n for n in range(12) if n != 4] and list(room.given_up) == [4]


@pytest.mark.parametrize("seed", range(20))
def test_random_deaths(seed: int) -> None:
    draw = random.Random(seed)
    room = Room(60, at_once=draw.randint(1, 6))
    mortal = [room.answerer(f"a{n}", dies_after=draw.randint(0, 30)) for n in range(3)]
    room.serve(room.answerer("immortal"), *mortal)
    assert sorted(room.answers) == list(range(60)) and not room.given_up
