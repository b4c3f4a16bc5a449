"""Our own hypervisor's parts, thin over /dev/kvm."""
