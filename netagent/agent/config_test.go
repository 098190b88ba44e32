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
