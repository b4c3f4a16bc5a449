# The network interfaces of the PCI function $1 (0000:05:00.0) and their stand-ins, a line an interface:
# `interface NAME ADDRESS`, or `interface NAME ADDRESS MASTER STANDIN CARRIER`. Runs in the guest, in any POSIX shell.
# The kernel's net_failover puts a function and a virtio-net device with the standby feature below one master.
root=${ROOT-}
sys=$root/sys
[ -e "$sys/bus/pci/devices/$1" ] || { echo "no function"; exit 0; }
for net in "$sys/bus/pci/devices/$1"/net/*; do
	[ -e "$net/address" ] || continue
	name=${net##*/} standin=
	master=$(readlink "$net/master")
	master=${master##*/}
	for lower in "$sys/class/net/$master"/lower_*; do
		[ -n "$master" ] && [ -e "$lower" ] || continue
		lower=${lower##*/lower_}
		[ "$lower" = "$name" ] || standin="$lower $(cat "$sys/class/net/$lower/carrier" 2>/dev/null || echo 0)"
	done
	echo "interface $name $(cat "$net/address")${standin:+ $master $standin}"
done
exit 0
