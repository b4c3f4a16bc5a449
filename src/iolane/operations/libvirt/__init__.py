"""iolane's devices in domains that libvirt manages: attached, detached, moved along."""
