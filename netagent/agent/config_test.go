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
