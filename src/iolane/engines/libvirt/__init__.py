"""The engine `libvirt`: domains that libvirt manages, with devices that iolane serves."""
