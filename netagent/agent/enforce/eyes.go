package enforce

import (
	"slices"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/xt"
	"github.com/braidnet/braid/internal/kernel/ipset"
	"github.com/braidnet/braid/internal/kernel/ipt"
	"github.com/braidnet/braid/internal/kernel/nft"
	"github.com/braidnet/braid/netagent/policy/iptables"
)

// eyes see whether somebody else changed the iptables rules or the sets of policies. Nothing of what it asks
// grows with the rules.
type eyes struct {
	rules interface {
		number() (uint32, error) // another one after a change
		entries() bool           // packets come to our chains
		close()
	}
	sets    *ipset.Conn
	commits func() uint32 // by how much our writes have raised the number of rules; 0 where that is not known

	made    uint32 // commits then
	last    uint32
	sizes   map[string]int // members that our sets have to have
	foreign bool           // somebody changed something since trust
	gone    bool           // rules or members of ours are missing
}

func newEyes(v ipt.Variant, families []bool) (*eyes, error) {
	e := &eyes{}
	var err error
	if e.sets, err = ipset.Open(); err != nil {
		return nil, err
	}
	if v == ipt.Legacy {
		watch, err := ipt.NewWatch(families...)
		if err != nil {
			e.sets.Close()
			return nil, err
		}
		e.rules = legacyEyes{watch}
		return e, nil
	}
	conn, err := nft.Open()
	if err != nil {
		e.sets.Close()
		return nil, err
	}
	e.rules = nftEyes{conn, families}
	return e, nil
}

func (e *eyes) close() {
	e.rules.close()
	e.sets.Close()
}

// look notes what others did since the last look. Where the kernel does not answer they may have done something.
func (e *eyes) look() {
	e.lookAtRules()
	e.lookAtSets()
}

func (e *eyes) lookAtRules() {
	number, err := e.rules.number()
	if err != nil || number != e.last {
		e.foreign, e.last, e.made = true, number, e.commits()
		e.gone = e.gone || !e.rules.entries()
	}
}

func (e *eyes) lookAtSets() {
	list, err := e.sets.List(iptables.SetPrefix)
	if err != nil {
		e.foreign = true
		return
	}
	there := 0
	for _, x := range list {
		if want, ours := e.sizes[x.Name]; ours {
			there++
			e.gone = e.gone || x.Members >= 0 && x.Members != want
		}
	}
	e.gone = e.gone || there < len(e.sizes)
}

// trust takes what was there at the last look, and what we wrote since, for right. What others did meanwhile stays
// to be seen; where our writes are not counted, that may be any of them.
func (e *eyes) trust(sizes map[string]int) {
	e.sizes, e.foreign, e.gone = sizes, false, false
	number, err := e.rules.number()
	commits := e.commits()
	if err != nil || number-e.last != commits-e.made {
		e.foreign, e.gone = true, !e.rules.entries()
	}
	e.last, e.made = number, commits
}

// nftEyes see the rules of the tools' variant nft.
type nftEyes struct {
	conn     *nft.Conn
	families []bool
}

func (e nftEyes) number() (uint32, error) { return e.conn.Generation() }

func (e nftEyes) entries() bool {
	return !slices.ContainsFunc(e.families, func(ipv6 bool) bool {
		family := desired.NFTIPv4
		if ipv6 {
			family = desired.NFTIPv6
		}
		return slices.ContainsFunc([]string{"FORWARD", "INPUT", xt.PolicyPrefix + "FORWARD"}, func(chain string) bool {
			there, err := e.conn.HasRules(family, iptables.Table, chain)
			return err == nil && !there
		})
	})
}

func (e nftEyes) close() { e.conn.Close() }

// legacyEyes see the kernel's older tables. Who changes these does so rarely: any change is looked at.
type legacyEyes struct{ *ipt.Watch }

func (e legacyEyes) number() (uint32, error) { return e.Sum() }
func (e legacyEyes) entries() bool           { return true }
func (e legacyEyes) close()                  { e.Close() }
