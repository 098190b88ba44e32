package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fullDisk is a runtime whose folder of reservations is on a disk of its own, in a mount namespace that ends with it. Its words
// are the verbs, and what happens to the disk in between.
const fullDisk = `
mount -t tmpfs -o size=128k none "$DISK"
call() { # verb, container, its namespace
	if CNI_COMMAND=$1 CNI_CONTAINERID=$2 CNI_NETNS=$3 CNI_IFNAME=eth0 CNI_PATH=/ "$BRAID" <"$CONF" >"$OUT" 2>&1; then echo "$1 $2: well"; else echo "$1 $2: failed, $(grep -o 'no space left[^":]*' "$OUT" | head -n1)"; fi
}
left() { echo "left: $(ls "$DISK/braid" | grep -c -e '^[0-9].*[.]' -e : -e reservation.new)"; }
n=0
fill() { # blocks, and what names need
	n=$((n+1))
	dd if=/dev/zero of="$DISK/fill$n" bs=1k 2>/dev/null || true
	for i in $(seq 500); do mkdir "$DISK/fill$n-$i" 2>/dev/null || break; done
}
call ADD first "$FIRST"
fill
call ADD second "$SECOND"
left
call DEL second "$SECOND"
rm -r "$DISK/braid/owners" # host-local makes none
fill
call DEL first "$FIRST"
left
rm -r "$DISK"/fill*
call ADD second "$SECOND"
left
call DEL second "$SECOND"
left
`

// TestFullDisk: on a disk without room ADD says so and leaves nothing, and DEL works, whether there is an index or not.
func TestFullDisk(t *testing.T) {
	h := newHost(t)
	first, second := newPod(t, "first"), newPod(t, "second")
	conf := filepath.Join(t.TempDir(), "conf")
	if err := os.WriteFile(conf, h.with(nil), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := h.Output("env", "DISK="+h.dir, "BRAID="+binary, "CONF="+conf, "OUT="+conf+".out", "FIRST="+first.netns, "SECOND="+second.netns,
		"unshare", "--mount", "--propagation", "private", "sh", "-ec", fullDisk)
	want := `ADD first: well
ADD second: failed, no space left on device
left: 2
DEL second: well
DEL first: well
left: 0
ADD second: well
left: 2
DEL second: well
left: 0
`
	if err != nil || strings.TrimSpace(out) != strings.TrimSpace(want) {
		t.Errorf("%v\n%s\nwant\n%s", err, out, want)
	}
	h.clean("at the end")
}
