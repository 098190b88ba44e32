package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// How renderers tell of packets that nothing allows: a copy of the packet's beginning goes to a group of
// the kernel's log (nfnetlink_log), at no more than a rate for each chain, with a Mark as its prefix. Packets that
// are allowed never come by there.
const (
	LogGroup = 66
	LogRate  = 10 // packets per second, of each chain
	LogBurst = 20
	LogBytes = 128 // of each packet: the network header and the ports
)

// Mark says at which point of the rules a packet was denied, or would have been.
type Mark struct {
	Direction Direction
	Audit     bool
	Chain     string // ID of the Chain; empty: the pod is not known
}

// MarkOf is the mark of a chain's end.
func MarkOf(c *Chain) Mark { return Mark{c.Direction, c.Audit, c.ID} }

const markWord = "braid"

// String is the prefix in the kernel's log, of at most 63 bytes: "braid ingress deny 0123456789".
func (m Mark) String() string {
	what := "deny"
	if m.Audit {
		what = "audit"
	}
	return fmt.Sprintf("%s %s %s %s", markWord, m.Direction, what, cmp.Or(m.Chain, "unknown"))
}

// ParseMark reads what String prints.
func ParseMark(text string) (m Mark, ok bool) {
	words := strings.Fields(text)
	if len(words) != 4 || words[0] != markWord {
		return m, false
	}
	switch words[1] {
	case Ingress.String():
	case Egress.String():
		m.Direction = Egress
	default:
		return m, false
	}
	m.Audit = words[2] == "audit"
	if m.Chain = words[3]; m.Chain == "unknown" {
		m.Chain = ""
	}
	return m, m.Audit || words[2] == "deny"
}

// Drop is a packet that was denied, or would have been, in words.
type Drop struct {
	Src, Dst string // namespace/name of pods, addresses of others
	Port     string // ":8443/tcp", or "/icmp"
	By       string // the policies that isolate the pod; empty when it is not known
	Why      string // "ingress, no rule matches"
	Audit    bool
}

// String prints "drop default/web-1 → prod/api-3:8443/tcp by prod/default-deny (ingress, no rule matches)".
func (d Drop) String() string {
	what, by := "drop", ""
	if d.Audit {
		what = "would drop (audit)"
	}
	if d.By != "" {
		by = " by " + d.By
	}
	return fmt.Sprintf("%s %s → %s%s%s (%s)", what, d.Src, d.Dst, d.Port, by, d.Why)
}

// Drop says why a packet met a mark. It reports false when, as of the last Flush, it would not: policies
// or pods have changed since.
func (c *Compiler) Drop(m Mark, p Packet) (d Drop, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	self, other := p.Dst, p.Src
	if m.Direction == Egress {
		self, other = other, self
	}
	d = Drop{Src: c.nameOf(p.Src), Dst: c.nameOf(p.Dst), Port: portText(p), Audit: m.Audit}
	owner := c.owner(self)
	if m.Chain == "" {
		d.Why = fmt.Sprintf("%s, %s is no pod that is known here", m.Direction, self)
		return d, owner == nil || !owner.target
	}
	s := c.step(m.Direction, self, other, p)
	d.By, d.Why = s.isolating(), fmt.Sprintf("%s, %s", m.Direction, cmp.Or(s.Closed, "no rule matches"))
	if m.Audit {
		return d, s.Audited
	}
	return d, !s.Allowed
}

// nameOf is the pod that has an address, or the address.
func (c *Compiler) nameOf(a netip.Addr) string {
	if p := c.owner(a); p != nil {
		return p.obj.Key.String()
	}
	if a.Is6() {
		return "[" + a.String() + "]"
	}
	return a.String()
}

func portText(p Packet) string {
	switch p.Protocol {
	case model.TCP, model.UDP, model.SCTP:
		return fmt.Sprintf(":%d/%s", p.Port, strings.ToLower(p.Protocol.String()))
	case 1, 58:
		return "/icmp"
	}
	return fmt.Sprintf("/%s", p.Protocol)
}
