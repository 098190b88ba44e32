package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/kernel/netns/nstest"
	"github.com/containernetworking/cni/pkg/types"
)

// others are plugins' configurations as they are found on nodes, with another type.
var others = map[string]string{
	// what flannel's plugin delegates to bridge
	"flannel": `{"cniVersion": "0.3.1", "name": "cbr0", "type": "braid", "hairpinMode": true, "isDefaultGateway": true, "ipMasq": false, "mtu": 1450, "isGateway": true,
		"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:10:244:1::/64"}]], "routes": [{"dst": "10.244.0.0/16"}, {"dst": "fd00:10:244::/48"}]}}`,
	"k3s": `{"cniVersion": "1.0.0", "name": "cbr0", "type": "braid", "bridge": "cni0", "forceAddress": true, "hairpinMode": true, "isDefaultGateway": true,
		"ipam": {"type": "host-local", "subnet": "10.42.0.0/24", "routes": [{"dst": "10.42.0.0/16"}]}}`,
	"kind": `{"cniVersion": "0.3.1", "name": "kindnet", "type": "braid", "ipMasq": false, "mtu": 1500,
		"ipam": {"type": "host-local", "dataDir": "/run/cni-ipam-state", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
		"ranges": [[{"subnet": "10.244.0.0/24"}], [{"subnet": "fd00:10:244::/64"}]]}}`,
	"kubernetes the hard way": `{"cniVersion": "1.0.0", "name": "bridge", "type": "braid", "bridge": "cni0", "isGateway": true, "ipMasq": true,
		"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.200.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}}`,
	"podman": `{"cniVersion": "0.4.0", "name": "podman", "type": "braid", "bridge": "cni-podman0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}], "ranges": [[{"subnet": "10.88.0.0/16", "gateway": "10.88.0.1"}]]}}`,
	"CRI-O": `{"cniVersion": "1.0.0", "name": "crio", "type": "braid", "bridge": "cni0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
		"ipam": {"type": "host-local", "routes": [{"dst": "0.0.0.0/0"}, {"dst": "1100:200::1/24"}], "ranges": [[{"subnet": "10.85.0.0/16"}], [{"subnet": "1100:200::/24"}]]}}`,
	"bridge's page": `{"cniVersion": "0.3.1", "name": "mynet", "type": "braid", "bridge": "mynet0", "isDefaultGateway": true, "forceAddress": false, "ipMasq": true, "ipMasqBackend": "nftables",
		"hairpinMode": true, "preserveDefaultVlan": false, "ipam": {"type": "host-local", "subnet": "10.10.0.0/16"}}`,
	"with tuning": `{"cniVersion": "1.0.0", "name": "tuned", "type": "braid", "promiscMode": true, "macspoofchk": true, "enabledad": true, "mac": "02:00:00:00:00:07", "promisc": true, "allmulti": true,
		"txQLen": 77, "sysctl": {"net.core.somaxconn": "500", "net.ipv4.conf.IFNAME.arp_filter": "1"}, "_note": "kept as it was", "capabilities": {"mac": true, "aliases": false},
		"ipam": {"type": "host-local", "resolvConf": "RESOLV", "ranges": [[{"subnet": "10.5.0.0/24", "rangeStart": "10.5.0.20", "rangeEnd": "10.5.0.30", "gateway": "10.5.0.254"}], [{"subnet": "fd05::/64"}]]}}`,
}

func TestConfigurationsOfOthers(t *testing.T) {
	for name, text := range others {
		t.Run(name, func(t *testing.T) {
			h := newPortHost(t)
			resolv := filepath.Join(h.dir, "resolv.conf")
			if err := os.WriteFile(resolv, []byte("# the node's\nnameserver 192.0.2.53\nsearch a.example b.example\noptions ndots:5\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			h.conf = map[string]any{}
			if err := json.Unmarshal([]byte(strings.ReplaceAll(text, "RESOLV", resolv)), &h.conf); err != nil {
				t.Fatal(err)
			}
			h.conf["ipam"].(map[string]any)["dataDir"] = h.dir
			a, b := newPod(t, "pod-a"), newPod(t, "pod-b")
			r := h.add(a.attach)
			delete(h.conf, "mac") // is for one pod: duplicate address detection would say so
			h.add(b.attach)
			b.ping(t, r.IPs[0].Address.IP.String())
			a.ping(t, r.IPs[0].Gateway.String())
			if h.conf["ipMasq"] == true {
				a.ping(t, "192.0.2.2") // which knows no way back to pods
			} else if _, err := a.Output("ping", "-n", "-c", "1", "-W", "1", "192.0.2.2"); err == nil {
				t.Error("masqueraded though nobody asked for it")
			}
			if version := h.conf["cniVersion"]; version != "0.3.1" {
				r.CNIVersion = "1.1.0"
				_, failure := h.call("CHECK", a.attach, h.with(map[string]any{"prevResult": r, "cniVersion": "1.1.0"}))
				if failure != nil {
					t.Errorf("CHECK: %v", failure)
				}
			}
			if name == "with tuning" {
				tuned(t, h, a)
				if r.DNS.Nameservers[0] != "192.0.2.53" || len(r.DNS.Search) != 2 || r.DNS.Options[0] != "ndots:5" {
					t.Errorf("dns %+v", r.DNS)
				}
			}
			h.del(a.attach)
			h.del(b.attach)
			if out := h.Exec(t, "nft", "list", "ruleset"); strings.Contains(out, "comment \"brd") {
				t.Errorf("after DEL:\n%s", out)
			}
		})
	}
}

// tuned looks at what options of tuning and of bridge left in the kernel.
func tuned(t *testing.T, h *portHost, p *pod) {
	t.Helper()
	for _, c := range []struct {
		in        *nstest.NS
		cmd, want string
	}{
		{p.NS, "ip -d link show eth0", "link/ether 02:00:00:00:00:07"},
		{p.NS, "ip -d link show eth0", "qlen 77"},
		{p.NS, "ip -d link show eth0", "allmulti 1"},
		{p.NS, "ip -d link show eth0", "promiscuity 1"},
		{p.NS, "sysctl -n net.core.somaxconn", "500"},
		{p.NS, "sysctl -n net.ipv4.conf.eth0.arp_filter", "1"},
		{p.NS, "sysctl -n net.ipv6.conf.eth0.accept_dad", "1"},
		{h.NS, "ip -d link show braid0", "PROMISC"},
		{h.NS, "bridge -d link show", "hairpin off"},
	} {
		words := strings.Fields(c.cmd)
		if out := c.in.Exec(t, words[0], words[1:]...); !strings.Contains(strings.ToLower(out), strings.ToLower(c.want)) {
			t.Errorf("%s:\n%s\nwant %s", c.cmd, out, c.want)
		}
	}
}

// TestDefaultRouteOfOthers: a gateway that is no default gateway leaves the pod's default route alone.
func TestDefaultRouteOfOthers(t *testing.T) {
	h := newHost(t)
	h.conf["isGateway"] = true
	a, b := newPod(t, "pod-a"), newPod(t, "pod-b")
	r := h.add(a.attach)
	h.add(b.attach)
	if out := a.Exec(t, "ip", "route"); strings.Contains(out, "default") || !strings.Contains(out, "10.244.1.0/24 via 10.244.1.1") {
		t.Errorf("routes of the pod:\n%s", out)
	}
	a.ping(t, "10.244.1.3")
	a.ping(t, "fd00:10:244:1::3")
	if failure := h.check(a.attach, r); failure != nil {
		t.Error(failure)
	}
}

func TestForceAddress(t *testing.T) {
	h := newHost(t)
	h.Exec(t, "ip", "link", "add", "braid0", "type", "bridge")
	for _, a := range []string{"10.99.0.1/24", "fd99::1/64"} {
		h.Exec(t, "ip", "addr", "add", a, "dev", "braid0")
	}
	has := func() string { return h.Exec(t, "ip", "-o", "addr", "show", "dev", "braid0") }
	h.add(newPod(t, "pod-a").attach)
	if out := has(); !strings.Contains(out, "10.99.0.1") || !strings.Contains(out, "10.244.1.1/24") {
		t.Errorf("not asked to: %s", out)
	}
	h.conf["forceAddress"] = true
	h.add(newPod(t, "pod-b").attach)
	if out := has(); strings.Contains(out, "10.99.0.1") || strings.Contains(out, "fd99::1") || !strings.Contains(out, "10.244.1.1/24") || !strings.Contains(out, "fe80::") {
		t.Errorf("asked to: %s", out)
	}
}

// TestOptionsThatAreNotServed: each is named, with its value, and never passed over.
func TestOptionsThatAreNotServed(t *testing.T) {
	for _, c := range []struct {
		conf string
		code uint
		want string
	}{
		{conf(ranges4, `, "vlan": 100`), 2, "vlan is 100, which this plugin does not do"},
		{conf(ranges4, `, "vlanTrunk": [{"id": 5}]`), 2, "vlanTrunk is a list"},
		{conf(ranges4, `, "disableContainerInterface": true`), 2, "disableContainerInterface is true"},
		{conf(ranges4, `, "portIsolation": true`), 2, "portIsolation is true"},
		{conf(ranges4, `, "ipMasqBackend": "iptables"`), 2, "ipMasqBackend is iptables"},
		{conf(ranges4, `, "isGateway": false`), 2, "isGateway is false"},
		{conf(ranges4, `, "hairpinmod": true`), 2, "hairpinmod is true, which this plugin does not do"},
		{conf(ranges4, `, "linkInContainer": "x"`), 2, `linkInContainer is "x"`},
		{conf(ranges4+`, "daemonSocketPath": "/x"`, ""), 2, "ipam.daemonSocketPath is"},
		{conf(`"ranges": [[{"subnet": "10.0.0.0/24", "vlan": 7}]]`, ""), 2, "ipam.ranges[0][0].vlan is 7"},
		{conf(ranges4+`, "routes": [{"dst": "10.0.0.0/8", "table": 5}]`, ""), 2, "ipam.routes[0].table is 5"},
		{conf(ranges4, `, "capabilities": {"aliases": true}`), 2, "capabilities.aliases is true"},
		{conf(ranges4, `, "runtimeConfig": {"infinibandGUID": "x"}`), 2, "runtimeConfig.infinibandGUID is"},
		{conf(ranges4, `, "hairpinMode": true, "promiscMode": true`), 7, "hairpinMode and promiscMode are both true"},
		{conf(ranges4, `, "mode": "routed", "forceAddress": true`), 7, "leave them out with mode routed"},
		{conf(ranges4, `, "mode": "routed", "bridge": "cni0"`), 7, `bridge is "cni0" with mode routed`},
		{conf(ranges4, `, "mode": "ptp"`), 7, `mode is "ptp": expected bridge or routed`},
		{conf(ranges4, `, "antiSpoofing": true, "macspoofchk": false`), 7, "antiSpoofing is true and macspoofchk is false"},
		{conf(ranges4, `, "txQLen": -1`), 7, "txQLen is -1"},
		{conf(ranges4, `, "sysctl": {"kernel.shmmax": "1"}`), 7, `sysctl has "kernel.shmmax": expected a parameter of the pod's network`},
		{conf(ranges4, `, "sysctl": {"net/../kernel/x": "1"}`), 7, `sysctl has "net/../kernel/x"`},
		{conf(ranges4, `, "mac": "01:00:00:00:00:01"`), 7, `mac is "01:00:00:00:00:01"`},
		{conf(ranges4+`, "resolvConf": "/none/such"`, ""), 7, "ipam.resolvConf: open /none/such"},
	} {
		_, err := parseConfig([]byte(c.conf))
		e, ok := err.(*types.Error)
		if !ok || e.Code != c.code || !strings.Contains(e.Msg, c.want) {
			t.Errorf("%s\n got %v\nwant code %d, %s", c.conf, err, c.code, c.want)
		}
		if _, err := parseForDelete([]byte(c.conf)); err != nil {
			t.Errorf("DEL with %s: %v", c.conf, err)
		}
	}
	for _, fine := range []string{`, "vlan": 0, "vlanTrunk": [], "portIsolation": false, "disableContainerInterface": false`, `, "isGateway": false, "isDefaultGateway": true`,
		`, "macspoofchk": true`, `, "preserveDefaultVlan": true`, `, "_comment": "x", "cni.dev/attachments": []`} {
		if _, err := parseConfig([]byte(conf(ranges4, fine))); err != nil {
			t.Errorf("%s: %v", fine, err)
		}
	}
}
