package link_test

import (
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/link"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
)

func TestRemovePodLinksTakesOnlyOurs(t *testing.T) {
	ns := nstest.New(t)
	ns.Exec(t, "ip", "link", "add", "braid0", "type", "bridge")
	ns.Exec(t, "ip", "link", "add", "docker0", "type", "bridge")
	ns.Exec(t, "ip", "link", "add", "brd0123456789a", "type", "veth", "peer", "name", "podend")
	ns.Exec(t, "ip", "link", "set", "brd0123456789a", "master", "braid0")
	ns.Exec(t, "ip", "link", "add", "brdge0", "type", "veth", "peer", "name", "other")
	ns.Exec(t, "ip", "link", "add", "brd0123456789g", "type", "veth", "peer", "name", "third") // no hash
	ns.Exec(t, "ip", "link", "add", "brd0123456789b", "type", "bridge")
	ns.Exec(t, "ip", "link", "add", "bwp0123456789a", "type", "ifb")
	ns.Exec(t, "ip", "link", "add", "bwp0123456789ab", "type", "ifb") // as another plugin names its own
	ns.Exec(t, "ip", "route", "add", "unreachable", "10.244.1.0/24", "proto", "66", "metric", "1048576")
	ns.Exec(t, "ip", "-6", "route", "add", "unreachable", "fd00:10:244:1::/64", "proto", "66", "metric", "1048576")
	ns.Exec(t, "ip", "route", "add", "unreachable", "10.245.0.0/16")

	var removed []string
	if err := ns.Do(func() error {
		h, err := link.OpenAt(-1)
		if err != nil {
			return err
		}
		defer h.Close()
		removed, err = link.RemovePodLinks(h)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if len(removed) != 5 {
		t.Errorf("removed %v, want the bridge braid0, the veth brd0123456789a, the ifb bwp0123456789a and two routes", removed)
	}
	if out := ns.Exec(t, "ip", "route") + ns.Exec(t, "ip", "-6", "route", "show", "proto", "66"); out != "unreachable 10.245.0.0/16 \n" {
		t.Errorf("routes left:\n%s", out)
	}
	left := ns.Exec(t, "ip", "-o", "link")
	for _, name := range []string{"docker0", "brdge0", "other", "brd0123456789g", "brd0123456789b", "bwp0123456789ab"} {
		if !strings.Contains(left, name) {
			t.Errorf("%s is not ours and is gone:\n%s", name, left)
		}
	}
	for _, name := range []string{"braid0", "brd0123456789a", "podend", "bwp0123456789a"} {
		if strings.Contains(left, " "+name+":") || strings.Contains(left, " "+name+"@") {
			t.Errorf("%s is ours and is still there:\n%s", name, left)
		}
	}
}
