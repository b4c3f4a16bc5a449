# Who uses the disks of the PCI function $1 (0000:05:00.0): a line a disk (`disk NAME`), a line a user (`used NAME BY WHAT`).
# Runs in the guest, in any POSIX shell. With $2 = release, multipath is asked to let go of paths it can do without.
root=${ROOT-}
sys=$root/sys proc=$root/proc
address=$1 wish=$2

[ -e "$sys/bus/pci/devices/$address" ] || { echo "no function"; exit 0; }

disks=
for disk in "$sys"/class/block/*; do
	[ -e "$disk/dev" ] || continue
	case $(readlink -f "$disk") in
	*/"$address"/*) disks="$disks ${disk##*/}" ;;
	esac
done

used() { # NAME, BY WHAT
	echo "used $1 $2"
}

of_multipath() { # whether HOLDER is a map of multipath that has another path than the disks of this function
	case $(cat "$sys/class/block/$1/dm/uuid" 2>/dev/null) in mpath-*) ;; *) return 1 ;; esac
	for slave in "$sys/class/block/$1/slaves"/*; do
		[ -e "$slave" ] || continue
		case " $disks " in *" ${slave##*/} "*) ;; *) return 0 ;; esac
	done
	return 1
}

for name in $disks; do
	echo "disk $name"
	number=$(cat "$sys/class/block/$name/dev")
	for holder in "$sys/class/block/$name/holders"/*; do
		[ -e "$holder" ] || continue
		holder=${holder##*/}
		if [ "$wish" = release ] && of_multipath "$holder" && multipathd del path "$name" >/dev/null 2>&1; then
			[ -e "$sys/class/block/$name/holders/$holder" ] || { echo "released $name $holder"; continue; }
		fi
		used "$name" "held by $holder"
	done
	for file in "$sys"/class/block/*/loop/backing_file; do
		[ "$(cat "$file" 2>/dev/null)" = "/dev/$name" ] || continue
		file=${file%/loop/backing_file}
		used "$name" "behind ${file##*/}"
	done
	awk -v name="/dev/$name" '$1 == name { print "swap" }' "$proc/swaps" 2>/dev/null | sort -u |
		while read -r what; do used "$name" "$what"; done
	cat "$proc"/[0-9]*/mountinfo 2>/dev/null |
		awk -v number="$number" -v name="/dev/$name" '
			{ source = ""; for (i = 6; i <= NF; i++) if ($i == "-") { source = $(i + 2); break } }
			$3 == number || source == name { print $5 }' | sort -u |
		while read -r where; do used "$name" "mounted on $where"; done
	node=$(printf '%x:%x' "${number%:*}" "${number#*:}")
	for process in "$proc"/[0-9]*; do
		open=
		for file in "$process"/fd/*; do
			[ -b "$file" ] && [ "$(stat -Lc %t:%T "$file" 2>/dev/null)" = "$node" ] && open=yes
		done
		grep -q " /dev/$name\$" "$process/maps" 2>/dev/null && open=yes
		[ -z "$open" ] || used "$name" "open in $(cat "$process/comm" 2>/dev/null) (${process##*/})"
	done
done
exit 0
