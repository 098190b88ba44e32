package nftables

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/netagent/service"
)

// word is what a chain does with connections before it hands them to a backend; with the number of
// backends it is the chain's name.
type word string

const (
	wordChoose     word = "choose"     // nothing
	wordPick       word = "pick"       // mark foreign sources for masquerading
	wordMasquerade word = "masquerade" // mark every source
	wordOutside    word = "outside"    // send pods of this node, and the node, where the map inside leads
	wordInside     word = "inside"     // nothing; backends are those of Frontend.Inside
)

// Pick names the chains that connections to like frontends pass: as many backends, the same sources
// masqueraded. There is one for each distinct Pick, however many frontends have it.
type Pick struct {
	family   desired.NFTFamily
	node     bool // for node ports
	word     word
	backends int // 0 only with wordOutside: all who are outside are dropped
	keep     int // session affinity, seconds; 0: none
}

// Picks returns what a frontend needs: where the map frontends leads, and where the map inside does.
// Either is nil when there is no such element.
func Picks(f *service.Frontend) (entry, inside *Pick) {
	n, m := min(len(f.Backends), maxBackends), 0
	p := Pick{family: familyOf(f.Addr), node: f.Kind == service.NodePort, backends: n, keep: seconds(f.Affinity)}
	switch f.Masquerade {
	case service.MasqueradeAll:
		p.word = wordMasquerade
	case service.MasqueradeNone:
		p.word = wordChoose
		if m = min(len(f.Inside), maxBackends); m > 0 {
			p.word = wordOutside
		}
	default:
		p.word = wordPick
	}
	if !known(f.Protocol) || n+m == 0 {
		return nil, nil
	}
	if m > 0 {
		i := p
		i.word, i.backends = wordInside, m
		inside = &i
	}
	if n == 0 {
		p.keep = 0
	}
	return &p, inside
}

// seconds rounds up.
func seconds(d time.Duration) int { return int((d + time.Second - 1) / time.Second) }

// chain is the name of the chain a frontend leads to, such as pick-3 or node-outside-2-for-10800.
func (p Pick) chain() string {
	name := setFor(p.node, fmt.Sprintf("%s-%d", p.word, p.backends))
	if p.keep > 0 {
		name = fmt.Sprintf("%s-for-%d", name, p.keep)
	}
	return name
}

// parsePick is the inverse of Pick.chain.
func parsePick(f desired.NFTFamily, chain string) (Pick, bool) {
	p := Pick{family: f}
	rest, node := strings.CutPrefix(chain, nodeWord)
	p.node = node
	name, rest, _ := strings.Cut(rest, "-")
	p.word = word(name)
	count, keep, kept := strings.Cut(rest, "-for-")
	var err error
	if p.backends, err = strconv.Atoi(count); err != nil {
		return p, false
	}
	if kept {
		if p.keep, err = strconv.Atoi(keep); err != nil || p.keep <= 0 {
			return p, false
		}
	}
	switch p.word {
	case wordOutside:
		return p, p.backends >= 0 && p.chain() == chain && (p.backends > 0 || p.keep == 0)
	case wordChoose, wordPick, wordMasquerade, wordInside:
		return p, p.backends > 0 && p.chain() == chain
	}
	return p, false
}

// chooses reports whether the chain itself sends to a backend.
func (p Pick) chooses() bool { return p.word == wordChoose || p.word == wordInside }

// rank is lower for chains that others lead to.
func (p Pick) rank() int {
	switch {
	case !p.chooses():
		return 2
	case p.keep > 0:
		return 1
	}
	return 0
}

// firstSlot is the slot that the numbers drawn start at.
func (p Pick) firstSlot() uint32 {
	if p.word == wordInside {
		return insideSlots
	}
	return 0
}

// front are the fields by which packets find a frontend.
func (f family) front(node bool) []nft.Field {
	if node {
		return []nft.Field{nft.Protocol, nft.DestinationPort}
	}
	return []nft.Field{f.destination(), nft.Protocol, nft.DestinationPort}
}

// Chains are the pick's chain and those it leads to, these first. The chains for a single backend
// without affinity, which all fall back on, are part of the skeleton.
func (p Pick) Chains() []desired.NFTChain {
	f := families[p.family]
	if p.chooses() {
		if p.keep == 0 {
			return []desired.NFTChain{p.choose()}
		}
		forgetful := p
		forgetful.keep = 0
		return []desired.NFTChain{forgetful.choose(), {Name: p.chain(), Rules: f.remember(p, forgetful)}}
	}
	if p.backends == 0 {
		return []desired.NFTChain{p.entry()}
	}
	return append(p.drawing().Chains(), p.entry())
}

// drawing is the pick that an entry chain leads to.
func (p Pick) drawing() Pick { p.word = wordChoose; return p }

// entry is the chain that decides who is masqueraded.
func (p Pick) entry() desired.NFTChain {
	f := families[p.family]
	var rules []desired.NFTRule
	switch p.word {
	case wordPick:
		rules = append(rules, nft.Rule("whoever is no pod of this node: masquerade", nft.Jump(chainForeign)))
	case wordMasquerade:
		rules = append(rules, nft.Rule("every source: masquerade", setMark(true)))
	case wordOutside:
		inside := append(nft.Key(f.front(p.node)...), nft.VerdictOf(setFor(p.node, setInside))...)
		rules = append(rules,
			nft.Rule("who is who: pods of this node stay without a mark", nft.Jump(chainForeign)),
			nft.Rule("pods of this node are at no distance: any backend", nft.NoBit(nft.Mark, MasqueradeMark), inside),
			nft.Rule("so is the node: any backend, masqueraded", nft.LocalSource(), inside),
			nft.Rule("from outside: clients keep their address", setMark(false)))
		if p.backends == 0 {
			return desired.NFTChain{Name: p.chain(), Rules: append(rules, nft.Rule("from outside, with endpoints elsewhere only", nft.Drop()))}
		}
	}
	return desired.NFTChain{Name: p.chain(), Rules: append(rules, nft.Rule("", nft.Goto(p.drawing().chain())))}
}

// choose is the chain that draws a slot.
//
// Lookups of one packet are not one moment for the kernel: a transaction may land between finding
// the chain and the slot, and the slot drawn may be gone. Such a packet takes the first slot, which every
// frontend with backends has; and should even that be gone it is dropped rather than let through, because a
// connection once tracked without translation would stay so for all its retries.
func (p Pick) choose() desired.NFTChain {
	f := families[p.family]
	last := nft.Rule("no backend any more: the client's retry decides anew", nft.Drop())
	if p.backends > 1 {
		one := p
		one.backends = 1
		last = nft.Rule("the backend drawn left just now", nft.Goto(one.chain()))
	}
	fields := append(f.front(p.node), draw(p.backends, p.firstSlot()))
	return desired.NFTChain{Name: p.chain(), Rules: []desired.NFTRule{
		nft.Rule("to one of the backends at random", nft.Key(fields...), nft.Mapped(setFor(p.node, setSlots)), f.translate(nft.Register0)),
		last,
	}}
}
