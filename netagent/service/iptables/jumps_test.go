package iptables

import (
	"fmt"
	"strings"
	"testing"
)

// TestPolicyComesFirst: what leads to our chains goes behind what leads to those of policy, wherever that is first.
func TestPolicyComesFirst(t *testing.T) {
	policy := `-m comment --comment "braid policy" -j BRAIDPOL-FORWARD`
	for want, rules := range map[int][]string{1: nil, 2: {policy, "-j ACCEPT"}, 3: {policy, policy}} {
		commands := fixJumps("filter", map[string][]string{"FORWARD": rules}, jumps)
		n := 0
		for _, c := range commands {
			if strings.HasPrefix(c, fmt.Sprintf("-I FORWARD %d -", want)) {
				n++
			}
		}
		if n != 2 {
			t.Errorf("%d commands put our rules in place %d of %q: %q", n, want, rules, commands)
		}
	}
	if c := fixJumps("filter", map[string][]string{"FORWARD": {"-j ACCEPT", policy}}, jumps); !strings.Contains(strings.Join(c, "\n"), "-I FORWARD 1 ") {
		t.Errorf("behind a rule that is not policy's: %q", c)
	}
}
