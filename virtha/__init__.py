"""virtha keeps virtual machines on plain KVM/libvirt hosts alive."""

__version__ = "0.1.0"
