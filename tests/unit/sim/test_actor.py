"""Who is frozen neither acts nor hears, and goes on where it was."""

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
