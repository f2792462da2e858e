"""A lab that a test has broken, made whole again."""

from virtha.lab import faults, lab
from virtha.lab.story import Story


def mend(story: Story) -> None:
    """Everything on, plugged in and running again, whatever the test before broke."""
    made = story.lab
    if "server" not in made.server.running_services():
        faults.start_server_again(made)
    for host in made.hosts:
        if not host.is_on():
            faults.boot_host(made, host.name)
        if not made.host(host.name).state.cable_up:
            faults.heal_net(made, host.name)
    for host in made.hosts:
        host.wait_ready()  # one that its BMC has just switched on
        running = host.running_services()
        for service in ("virtlogd", "libvirtd", "guardian", "agent"):
            if service not in running:
                host.start_service(service)
    lab.wait_hosts(made)
    lab.wait_storage(made)
