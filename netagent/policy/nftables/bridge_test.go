package nftables

import (
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/braidnet/braid/internal/kernel/nft"
)

// TestPastTheNode: a pod that sends to another pod's hardware address, or to all, does not get past the node.
func TestPastTheNode(t *testing.T) {
	node, a, b := nstest.New(t), nstest.New(t), nstest.New(t)
	node.Exec(t, "ip", "link", "add", "braid0", "address", "02:00:00:00:00:01", "type", "bridge")
	node.Exec(t, "ip", "addr", "add", "10.0.0.1/24", "dev", "braid0")
	node.Exec(t, "ip", "link", "set", "braid0", "up")
	node.Forward(t)
	var macB string
	for name, pod := range map[string]*nstest.NS{"a": a, "b": b} {
		nstest.Veth(t, node, "brd"+name, pod, "eth0")
		node.Exec(t, "ip", "link", "set", "brd"+name, "master", "braid0")
		addr := map[string]string{"a": "10.0.0.2", "b": "10.0.0.3"}[name]
		pod.Exec(t, "ip", "addr", "add", addr+"/32", "dev", "eth0")
		pod.Exec(t, "ip", "route", "add", "10.0.0.1", "dev", "eth0")
		for _, dev := range []string{"all", "eth0"} { // as the CNI plugin makes pods
			pod.Sysctl(t, "net/ipv4/conf/"+dev+"/accept_redirects", "0")
		}
		pod.Exec(t, "ip", "route", "add", "default", "via", "10.0.0.1")
		if name == "b" {
			pod.Run(t, func() error {
				l, err := netlink.LinkByName("eth0")
				if err == nil {
					macB = l.Attrs().HardwareAddr.String()
				}
				return err
			})
		}
	}
	var conn *nft.Conn
	node.Run(t, func() (err error) { conn, err = nft.Open(); return err })
	t.Cleanup(conn.Close)
	program := func(gateway net.HardwareAddr) {
		t.Helper()
		have, err := conn.Read(desired.NFTBridge, TableName)
		if err != nil {
			t.Fatal(err)
		}
		ops, _ := ReplaceBridge(Options{Bridge: "braid0", Links: "brd"}, gateway, have)
		if err := conn.Apply(ops); err != nil {
			t.Fatal(err)
		}
		have, _ = conn.Read(desired.NFTBridge, TableName)
		if ops, why := ReplaceBridge(Options{Bridge: "braid0", Links: "brd"}, gateway, have); len(ops) > 0 {
			t.Errorf("differs from what was written: %s", why)
		}
	}
	reaches := func(want bool, how string) {
		t.Helper()
		out, err := a.Output("ping", "-c1", "-W1", "10.0.0.3")
		if (err == nil) != want {
			t.Errorf("%s: reached %v, want %v\n%s", how, err == nil, want, out)
		}
	}
	nstest.Wait(t, "the way through the node", func() error { _, err := a.Output("ping", "-c1", "-W1", "10.0.0.3"); return err })
	program(nil)
	reaches(false, "through a node without a gateway")
	program(net.HardwareAddr{2, 0, 0, 0, 0, 1})
	reaches(true, "through the node")
	a.Exec(t, "ip", "route", "add", "10.0.0.3", "dev", "eth0")
	a.Exec(t, "ip", "neigh", "replace", "10.0.0.3", "lladdr", macB, "dev", "eth0")
	reaches(false, "past the node")
	a.Exec(t, "ip", "neigh", "replace", "10.0.0.3", "lladdr", "ff:ff:ff:ff:ff:ff", "dev", "eth0")
	reaches(false, "to all")
	node.Exec(t, "nft", "delete", "table", "bridge", TableName)
	a.Exec(t, "ip", "neigh", "replace", "10.0.0.3", "lladdr", macB, "dev", "eth0")
	reaches(true, "past the node that does not forbid it")
	program(nil)
	if text := node.Exec(t, "nft", "list", "table", "bridge", TableName); !strings.Contains(text, `iifname "brd*"`) {
		t.Errorf("listed as\n%s", text)
	}
}
