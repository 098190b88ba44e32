package nft

import (
	"maps"
	"net"
	"testing"

	"github.com/braidnet/braid/internal/desired"
)

// TestRuleCounts: the counters of a chain's rules are read by their comments.
func TestRuleCounts(t *testing.T) {
	c, ns := open(t)
	ns.Exec(t, "ip", "link", "set", "lo", "up")
	ns.Exec(t, "nft", "add table ip t; add chain ip t out { type filter hook output priority 0; }; add chain ip t other; "+
		`add rule ip t out udp dport 99 counter drop comment "nines"; add rule ip t out udp dport 88 counter drop comment "eights"; `+
		`add rule ip t out accept comment "the rest"; add rule ip t other counter comment "elsewhere"`)
	ns.Run(t, func() error {
		for range 3 {
			s, err := net.Dial("udp4", "127.0.0.1:99")
			if err != nil {
				return err
			}
			_, _ = s.Write(make([]byte, 72))
			s.Close()
		}
		return nil
	})
	got, err := c.RuleCounts(desired.NFTIPv4, "t", "out")
	if want := map[string]Count{"nines": {3, 300}, "eights": {}}; err != nil || !maps.Equal(got, want) {
		t.Errorf("counted %v, %v, want %v", got, err, want)
	}
	for _, where := range [][2]string{{"t", "nowhere"}, {"none", "out"}} {
		if got, err := c.RuleCounts(desired.NFTIPv4, where[0], where[1]); err != nil || len(got) > 0 {
			t.Errorf("%v: counted %v, %v", where, got, err)
		}
	}
}
