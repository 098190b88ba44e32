package agent

import (
	"fmt"
	"strings"
	"testing"
)

func TestServiceSettings(t *testing.T) {
	for _, tc := range []struct {
		ips, ports string
		want       string // the planner's setting, or part of the error
	}{
		{"", "", "[] [] false"},
		{"192.0.2.7/24, 2001:db8::1", "", "[192.0.2.0/24 2001:db8::1/128] [] false"},
		{"", "primary", "[] [] true"},
		{"", "10.0.0.0/8,fd00::/8", "[] [10.0.0.0/8 fd00::/8] false"},
		{"192.0.2.0/33", "", `external-ips: "192.0.2.0/33" is no address range`},
		{"::ffff:192.0.2.1", "", "external-ips: "},
		{"", "secondary", `nodeport-addresses: "secondary" is no address range: use CIDRs such as 192.0.2.0/24, separated by commas, or the word primary`},
	} {
		c := DefaultConfig()
		c.Node, c.ExternalIPs, c.NodePortAddresses = "n1", tc.ips, tc.ports
		err := c.Validate()
		s, _ := c.services()
		got := fmt.Sprint(s.ExternalIPs, s.NodePortAddresses, s.NodePortPrimary)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("external-ips %q, nodeport-addresses %q: %s, want %s", tc.ips, tc.ports, got, tc.want)
		}
	}
}

func TestDetectLocalSettings(t *testing.T) {
	for _, tc := range []struct {
		set  DetectLocal
		want string // the planner's setting, or part of the error
	}{
		{DetectLocal{}, "{[]  false}"},
		{DetectLocal{Mode: "NodeCIDR"}, "{[]  false}"},
		{DetectLocal{ClusterCIDR: "10.244.0.7/16,fd00:10:244::/48"}, "{[10.244.0.0/16 fd00:10:244::/48]  false}"},
		{DetectLocal{Mode: "ClusterCIDR", ClusterCIDR: "10.244.0.0/16"}, "{[10.244.0.0/16]  false}"},
		{DetectLocal{Mode: "BridgeInterface", Bridge: "cni0"}, "{[] cni0 false}"},
		{DetectLocal{Mode: "InterfaceNamePrefix", Prefix: "cali"}, "{[] cali true}"},
		{DetectLocal{Mode: "clustercidr"}, `detect-local-mode: unknown mode "clustercidr": use one of ClusterCIDR, NodeCIDR, `},
		{DetectLocal{Mode: "ClusterCIDR"}, "cluster-cidr: detect-local-mode ClusterCIDR needs it"},
		{DetectLocal{ClusterCIDR: "10.244.0.0"}, "{[10.244.0.0/32]  false}"},
		{DetectLocal{ClusterCIDR: "10.244/16"}, `cluster-cidr: "10.244/16" is no address range`},
		{DetectLocal{Mode: "NodeCIDR", ClusterCIDR: "10.244.0.0/16"}, "cluster-cidr: counts for nothing with detect-local-mode NodeCIDR"},
		{DetectLocal{Bridge: "cni0"}, "pod-bridge-interface: counts for nothing with detect-local-mode NodeCIDR: leave it out, or use BridgeInterface"},
		{DetectLocal{Mode: "BridgeInterface", Bridge: "cni+"}, "pod-bridge-interface: the name of a device has"},
		{DetectLocal{Mode: "InterfaceNamePrefix", Prefix: "abcdefghijklmnop"}, "pod-interface-name-prefix: \"abcdefghijklmnop\" is no name of a device"},
	} {
		c := DefaultConfig()
		c.Node, c.DetectLocal = "n1", tc.set
		err := c.Validate()
		s, _ := c.services()
		got := fmt.Sprint(s.Local)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("%+v: %s, want %s", tc.set, got, tc.want)
		}
	}
}

func TestMasqueradeSettings(t *testing.T) {
	for _, tc := range []struct {
		change func(*Config)
		want   string // what the planner is told, or the beginning of the error
	}{
		{func(*Config) {}, "true false [] {braid. [8472] [] false true}"},
		{func(c *Config) { c.Overlay, c.CNIConfDir = "none", "" }, "false false [] { [] [] false true}"},
		{func(c *Config) { c.Overlay, c.CNIConfDir, c.ServiceMode = "none", "", "none" }, "false false [] { [] [] false false}"},
		{func(c *Config) { c.Overlay, c.CNIConfDir, c.IPMasq = "none", "", "true" }, "true false [] { [] [] false true}"},
		{func(c *Config) { c.Overlay = "none" }, "true false [] { [] [] false true}"},
		{func(c *Config) { c.Overlay, c.UDPPort = "udp", 9000 }, "true false [] {braid. [9000] [] false true}"},
		{func(c *Config) { c.Overlay = "wireguard" }, "true false [] {braid. [51820 51821] [] true true}"},
		{func(c *Config) { c.Overlay = "ipip" }, "true false [] {braid. [] [4 41] false true}"},
		{func(c *Config) { c.Overlay = "host-gw" }, "true false [] { [] [] false true}"},
		{func(c *Config) { c.NonMasquerade, c.IPMasqSamePorts = "10.1.2.3/8,2001:db8::/32", true }, "true true [10.0.0.0/8 2001:db8::/32] {braid."},
		{func(c *Config) { c.IPMasq = "false" }, "false false [] {braid. [8472] [] false true}"},
		{func(c *Config) { c.IPMasq = "yes" }, `ip-masq: unknown value "yes": use one of auto, true, false`},
		{func(c *Config) { c.NonMasquerade = "10.0.0.0/33" }, `non-masquerade-cidrs: "10.0.0.0/33" is no address range`},
		{func(c *Config) { c.NonMasquerade, c.IPMasq = "10.0.0.0/8", "false" }, "non-masquerade-cidrs: nothing is masqueraded with ip-masq false here: leave it out"},
		{func(c *Config) { c.IPMasqSamePorts, c.Overlay, c.CNIConfDir = true, "none", "" }, "ip-masq-fully-random-disable: nothing is masqueraded with ip-masq auto here"},
	} {
		c := DefaultConfig()
		c.Node = "n1"
		tc.change(&c)
		err := c.Validate()
		e, _ := c.egressConfig()
		got := fmt.Sprint(e.Masquerade, e.SamePorts, e.Keep, e.Overlay)
		if err != nil {
			got = err.Error()
		}
		if !strings.HasPrefix(got, tc.want) {
			t.Errorf("%s, want %s", got, tc.want)
		}
	}
}

// TestPolicyModeNames: what is not a mode is an error that names those that are.
func TestPolicyModeNames(t *testing.T) {
	c := DefaultConfig()
	c.Node, c.PolicyMode = "n1", "ipvs"
	if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "auto, nftables, iptables") {
		t.Errorf("error %v", err)
	}
}
