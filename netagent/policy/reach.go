package policy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/braidnet/braid/internal/model"
)

// Reach is what one address may send to another.
type Reach struct {
	All   bool        // every protocol and port
	Ports []PortRange // else these: sorted, disjoint, not adjacent
}

// String prints "all", "none", or such as "80/TCP 8000-8080/TCP all/UDP".
func (r Reach) String() string {
	switch {
	case r.All:
		return "all"
	case len(r.Ports) == 0:
		return "none"
	}
	texts := make([]string, len(r.Ports))
	for i, p := range r.Ports {
		switch {
		case p.From == 0 && p.To == 65535:
			texts[i] = fmt.Sprintf("all/%s", p.Protocol)
		case p.From == p.To:
			texts[i] = fmt.Sprintf("%d/%s", p.From, p.Protocol)
		default:
			texts[i] = fmt.Sprintf("%d-%d/%s", p.From, p.To, p.Protocol)
		}
	}
	return strings.Join(texts, " ")
}

// ParseReach reads what String prints, in any order.
func ParseReach(text string) (r Reach, err error) {
	switch text {
	case "all":
		return Reach{All: true}, nil
	case "none":
		return Reach{}, nil
	}
	for _, word := range strings.Fields(text) {
		p := PortRange{To: 65535}
		ports, protocol, _ := strings.Cut(word, "/")
		for _, x := range []model.Protocol{model.TCP, model.UDP, model.SCTP} {
			if x.String() == protocol {
				p.Protocol = x
			}
		}
		from, to, isRange := strings.Cut(ports, "-")
		if !isRange {
			to = from
		}
		a, errA := strconv.ParseUint(from, 10, 16)
		b, errB := strconv.ParseUint(to, 10, 16)
		if ports != "all" {
			p.From, p.To, err = uint16(a), uint16(b), cmp.Or(errA, errB)
		}
		if err != nil || p.Protocol == 0 || p.From > p.To {
			return Reach{}, fmt.Errorf("%q is nothing that can be allowed: write all, none, or ports such as 80/TCP 8000-8080/TCP all/UDP", word)
		}
		r.Ports = append(r.Ports, p)
	}
	r.Ports = joinPorts(r.Ports)
	return r, nil
}

// Reach says all that Eval allows from src to dst, as of the last Flush.
func (c *Compiler) Reach(src, dst netip.Addr) Reach {
	c.mu.Lock()
	defer c.mu.Unlock()
	return intersect(c.half(Egress, src, dst, dst), c.half(Ingress, dst, src, dst))
}

// half is what the policies of the pod at self allow.
func (c *Compiler) half(dir Direction, self, other, dst netip.Addr) Reach {
	owner := c.owner(self)
	if owner == nil || !owner.target || owner.chains[dir] == nil || owner.chains[dir].Audit {
		return Reach{All: true}
	}
	var out Reach
	for _, tier := range owner.chains[dir].Tiers {
		for _, ref := range tier.Sections {
			for _, r := range c.sections[ref.ID].value.Rules {
				if !c.peerMatches(&r, other) {
					continue
				}
				out.All = out.All || r.AnyPort
				out.Ports = append(out.Ports, r.Ports...)
				for _, s := range r.Named {
					out.Ports = append(out.Ports, c.numbers(s, dst)...)
				}
			}
		}
	}
	if out.All {
		return Reach{All: true}
	}
	out.Ports = joinPorts(out.Ports)
	return out
}

// numbers are the ports that a PortSet has of an address.
func (c *Compiler) numbers(s *Set, dst netip.Addr) (out []PortRange) {
	owner := c.owner(dst)
	if owner == nil {
		return nil
	}
	for _, p := range owner.obj.Ports {
		if c.holds(s, dst, p.Port) {
			out = append(out, PortRange{s.Protocol, p.Port, p.Port})
		}
	}
	return out
}

// joinPorts sorts ranges and joins those that overlap or touch.
func joinPorts(list []PortRange) (out []PortRange) {
	slices.SortFunc(list, func(a, b PortRange) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.From, b.From))
	})
	for _, r := range list {
		if n := len(out) - 1; n >= 0 && out[n].Protocol == r.Protocol && int(r.From) <= int(out[n].To)+1 {
			out[n].To = max(out[n].To, r.To)
			continue
		}
		out = append(out, r)
	}
	return out
}

func intersect(a, b Reach) Reach {
	switch {
	case a.All:
		return b
	case b.All:
		return a
	}
	var out Reach
	for _, x := range a.Ports {
		for _, y := range b.Ports {
			if r := (PortRange{x.Protocol, max(x.From, y.From), min(x.To, y.To)}); x.Protocol == y.Protocol && r.From <= r.To {
				out.Ports = append(out.Ports, r)
			}
		}
	}
	out.Ports = joinPorts(out.Ports)
	return out
}

// Contains reports whether a port of a protocol is among what may be sent.
func (r Reach) Contains(protocol model.Protocol, port uint16) bool {
	return r.All || slices.ContainsFunc(r.Ports, func(x PortRange) bool {
		return x.Protocol == protocol && x.From <= port && port <= x.To
	})
}
