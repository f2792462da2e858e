"""Who is frozen neither acts nor hears, and goes on where it was."""

import pytest

from virtha.sim.kernel import Actor, Kernel


def test_what_is_due_while_frozen_happens_at_the_thaw_in_order():
    kernel = Kernel()
    actor, done = Actor(kernel), list[str]()
    actor.after(10, lambda: done.append("first"))
    actor.after(20, lambda: done.append("second"))
    actor.after(500, lambda: done.append("third"))
    actor.freeze()
    kernel.advance(100)
    actor.deliver(lambda: done.append("heard"))
    assert done == []
    actor.thaw()
    assert done == ["first", "second", "heard"]
    kernel.advance(400)
    assert done[-1] == "third"


def test_a_process_sleeps_with_its_machine():
    kernel = Kernel()
    machine = Actor(kernel)
    process, done = Actor(machine), list[str]()
    machine.freeze()
    process.after(1, lambda: done.append("acted"))
    kernel.advance(10)
    assert done == []
    process.freeze()
    machine.thaw()
    assert done == []
    process.thaw()
    assert done == ["acted"]


def test_one_that_freezes_itself_while_it_thaws_keeps_the_rest():
    kernel = Kernel()
    actor, done = Actor(kernel), list[str]()
    actor.freeze()
    actor.deliver(lambda: actor.freeze())
    actor.deliver(lambda: done.append("too soon"))
    actor.thaw()
    assert done == [] and actor.frozen


def test_what_the_dead_had_still_to_do_is_gone():
    kernel = Kernel()
    actor, done = Actor(kernel), list[str]()
    actor.freeze()
    actor.deliver(lambda: done.append("x"))
    actor.die()
    actor.thaw()
    assert done == []


def test_what_stands_behind_an_action_that_failed_is_still_done():
    kernel, done = Kernel(), list[str]()

    def fail() -> None:
        kernel.after(0, lambda: done.append("asked for by it"))
        raise RuntimeError("broken")

    kernel.after(5, lambda: done.append("before"))
    kernel.after(5, fail)
    kernel.after(5, lambda: done.append("behind"))
    with pytest.raises(RuntimeError, match="broken"):
        kernel.advance(10)
    assert (kernel.now, done) == (5, ["before"])
    kernel.advance(10)
    assert (kernel.now, done) == (15, ["before", "behind", "asked for by it"])


def test_the_last_of_a_moment_is_the_one_that_was_asked_for_last():
    kernel, done = Kernel(), list[str]()

    def first() -> None:
        done.append("first")

    def second() -> None:
        done.append("second")

    kernel.after(5, first)
    assert kernel.is_last(5, first)
    kernel.after(5, second)
    assert (kernel.is_last(5, first), kernel.is_last(5, second)) == (False, True)
    kernel.advance(5)
    assert done == ["first", "second"]
    assert not kernel.is_last(5, second)
