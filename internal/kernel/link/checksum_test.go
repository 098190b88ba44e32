package link

import (
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

func TestChecksumBug(t *testing.T) {
	for release, bug := range map[string]bool{
		"6.18.44-fc-v657": false, "5.10.0-30-amd64": false, "5.8.0": false, "5.7.1": false, "5.7.0": true, "5.7.0-rc3": true, "5.7": true, "5.6.12": true, "5.6.13": false,
		"5.5.19": true, "5.4.0-190-generic": true, "5.4.41": false, "4.19.0-27-amd64": true, "4.19.122": true, "4.19.123-1": false, "4.18.0-553.el8.x86_64": true,
		"4.14.181": false, "3.10.0-1160.el7.x86_64": true, "10.0.1": false, "": false, "unknown": false, "5.x": false, "5.4.x": false,
	} {
		if got := checksumBug(release); got != bug {
			t.Errorf("%q: %v, want %v", release, got, bug)
		}
	}
}

// TestChecksumsWhereTheKernelIsBroken: a VXLAN device is made, and kept, without checksum offload there, and with it elsewhere.
func TestChecksumsWhereTheKernelIsBroken(t *testing.T) {
	before := checksumsBroken
	defer func() { checksumsBroken = before }()
	for _, broken := range []bool{false, true} {
		checksumsBroken = func() bool { return broken }
		ns := nstest.New(t)
		ns.Exec(t, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "peer0")
		ns.Run(t, func() error {
			h, err := OpenAt(-1)
			if err != nil {
				return err
			}
			defer h.Close()
			want := desired.Link{Name: "braid.vx4", MTU: 1450, MAC: desired.MAC{2, 0, 0, 0, 0, 1}, Origin: "test", VXLAN: desired.VXLAN{VNI: 1, Port: 8472, Underlay: "eth0"}}
			ensure := func() []string {
				table, err := ReadTable(h)
				if err != nil {
					t.Fatal(err)
				}
				done, err := Ensure(h, table, want)
				if err != nil {
					t.Fatal(err)
				}
				return done
			}
			ensure()
			if on, err := checksumOffload(want.Name, nil); err != nil || on == broken {
				t.Errorf("kernel broken: %v; the device leaves checksums to the card: %v, %v", broken, on, err)
			}
			if done := ensure(); len(done) > 0 {
				t.Errorf("once more did %q", done)
			}
			set := true
			if _, err := checksumOffload(want.Name, &set); err != nil {
				return err
			}
			if done := strings.Join(ensure(), "; "); broken != strings.Contains(done, "checksum offload") {
				t.Errorf("kernel broken: %v; somebody switched it on: %q", broken, done)
			}
			_, err = checksumOffload("nosuch0", nil)
			if err == nil {
				t.Error("a device that is not there has checksum offload")
			}
			return h.LinkDel(&netlink.Vxlan{LinkAttrs: netlink.LinkAttrs{Name: want.Name}})
		})
	}
}
