package nftables

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/desired"
)

// Samples are one of each kind of the chains that come besides the skeleton's, those that others lead to first.
func Samples(f desired.NFTFamily) (chains []desired.NFTChain) {
	for _, node := range []bool{false, true} {
		for _, w := range []word{wordChoose, wordInside} {
			chains = append(chains, Pick{f, node, w, 2, 1}.Chains()...)
		}
		for _, p := range []Pick{{f, node, wordPick, 2, 1}, {f, node, wordMasquerade, 2, 0}, {f, node, wordOutside, 2, 1}, {f, node, wordOutside, 0, 0}} {
			chains = append(chains, p.entry())
		}
		chains = append(chains, sourcesChain(f, node, []netip.Prefix{families[f].loopback}))
	}
	return append(chains, loopbackChain(f))
}

// digest identifies everything static: the skeleton, and one of each kind of other chains.
func digest(t *desired.NFTTable) string { return digestOf(t, append(t.Chains, Samples(t.Family)...)) }

func digestOf(t *desired.NFTTable, chains []desired.NFTChain) string {
	h := sha256.New()
	fmt.Fprintf(h, "%v %+v\n", t.Family, t.Sets)
	for _, c := range chains {
		fmt.Fprintf(h, "chain %s %+v\n", c.Name, c.Hook)
		for _, r := range c.Rules {
			var words strings.Builder
			for _, e := range r.Exprs {
				fmt.Fprintf(&words, "%T%+v ", e, e)
			}
			fmt.Fprintf(h, "%s # %s\n", words.String(), r.Comment)
		}
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:8])
}

// intact reports whether the kernel holds the skeleton of this version with its rules, and says
// what is wrong if not. Other chains of ours may be there, with the right rules where they are wanted.
func intact(t *desired.NFTTable, want map[string]desired.NFTChain, have *desired.NFTContents) error {
	if have.Comment != t.Comment {
		return fmt.Errorf("its layout is %q, ours is %q", have.Comment, t.Comment)
	}
	for _, s := range t.Sets {
		if !have.Sets[s.Name] {
			return fmt.Errorf("set %s is missing", s.Name)
		}
	}
	if len(have.Sets) != len(t.Sets) {
		return fmt.Errorf("it has %d sets instead of %d", len(have.Sets), len(t.Sets))
	}
	static := map[string]bool{}
	for _, c := range t.Chains {
		static[c.Name] = true
		if err := sameRules(&c, have); err != nil {
			return err
		}
	}
	for name := range have.Rules {
		if static[name] {
			continue
		}
		c, ok := want[name]
		if p, is := parsePick(t.Family, name); is && !ok {
			chains := p.Chains()
			c, ok = chains[len(chains)-1], true
		}
		switch {
		case ok:
			if err := sameRules(&c, have); err != nil {
				return err
			}
		case !isSources(name) && name != chainLoopback:
			return fmt.Errorf("chain %s is not ours", name)
		}
	}
	return nil
}

// sameRules compares the comments of a chain's rules: the kernel gives expressions back in another
// form than it took them, and whoever alters our rules does not forge comments.
func sameRules(c *desired.NFTChain, have *desired.NFTContents) error {
	rules, ok := have.Rules[c.Name]
	if !ok {
		return fmt.Errorf("chain %s is missing", c.Name)
	}
	if len(rules) != len(c.Rules) {
		return fmt.Errorf("chain %s has %d rules instead of %d", c.Name, len(rules), len(c.Rules))
	}
	for i, r := range c.Rules {
		if rules[i] != r.Comment {
			return fmt.Errorf("rule %d of chain %s is not ours", i+1, c.Name)
		}
	}
	return nil
}
