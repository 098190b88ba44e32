package nft

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/braidnet/braid/internal/desired"
)

// TestBaseChains: who hands what to which chains, with what policy, is read as nft and iptables write it.
func TestBaseChains(t *testing.T) {
	c, ns := open(t)
	ns.Exec(t, "nft", `
		table inet wall {
			chain through { type filter hook forward priority filter + 10; policy drop; ct state established accept; jump zones; }
			chain in { type filter hook input priority filter; policy accept; }
			chain zones { }
		}
		table ip filter { chain FORWARD { type filter hook forward priority filter; policy accept; }; }`)
	got, err := c.BaseChains()
	want := []BaseChain{{desired.NFTInet, "wall", "through", HookForward, true}, {desired.NFTInet, "wall", "in", 1, false}, {desired.NFTIPv4, "filter", "FORWARD", HookForward, false}}
	slices.SortFunc(got, func(a, b BaseChain) int { return strings.Compare(b.Name, a.Name) })
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("chains %v, %v, want %v", got, err, want)
	}
	for _, x := range []struct {
		table, name string
		there       bool
	}{{"wall", "through", true}, {"wall", "zones", false}, {"wall", "none", false}, {"none", "through", false}} {
		if b, ok, err := c.BaseChain(desired.NFTInet, x.table, x.name); ok != x.there || err != nil || ok && b != want[0] {
			t.Errorf("%v: %v, %v, %v", x, b, ok, err)
		}
	}
}

func TestVerdicts(t *testing.T) {
	c, ns := open(t)
	ns.Exec(t, "nft", `
		table inet wall {
			chain other { }
			chain through { ip saddr 10.0.0.0/8 drop; counter log prefix "x" accept; meta mark 1 ; jump other; reject with icmpx admin-prohibited; counter drop comment "all"; goto other; }
		}`)
	check := func(f desired.NFTFamily, table, chain string, want ...Verdict) {
		t.Helper()
		if got, err := c.Verdicts(f, table, chain); err != nil || !slices.Equal(got, want) {
			t.Errorf("chain %s of table %s %s: %+v, %v, want %+v", chain, f, table, got, err, want)
		}
	}
	check(desired.NFTInet, "wall", "through", Verdict{"drop", "", false}, Verdict{"accept", "", true}, Verdict{}, Verdict{"jump", "other", true},
		Verdict{"reject", "", true}, Verdict{"drop", "", true}, Verdict{"goto", "other", true})
	check(desired.NFTInet, "wall", "other")
	check(desired.NFTInet, "wall", "none")
	check(desired.NFTIPv4, "none", "none")
	for f, tool := range map[desired.NFTFamily]string{desired.NFTIPv4: "iptables-nft", desired.NFTIPv6: "ip6tables-nft"} {
		ns.Exec(t, "sh", "-euc", "T="+tool+`
			$T -N ours; $T -A FORWARD -m comment --comment "for pods" -j ours; $T -A FORWARD -p tcp -j ours; $T -A FORWARD -m mark --mark 1 -j ACCEPT
			$T -A FORWARD -j REJECT; $T -A FORWARD -m comment --comment bye -j DROP`)
		check(f, "filter", "FORWARD", Verdict{"jump", "ours", true}, Verdict{"jump", "ours", false}, Verdict{"accept", "", false}, Verdict{"reject", "", true}, Verdict{"drop", "", true})
	}
}
