package link

import (
	"net/netip"
	"strings"
)

// Mark is what the alias of a host end says: whose it is, and how it is connected. The agent repairs by it what
// somebody else changed, and needs no record of its own.
//
//	default/web-0 bridge=braid0
//	default/web-0 routed=10.244.1.5,fd00:10:244:1::5
//
// An attachment is marked last, so a link without a mark is one that is still being made.
type Mark struct {
	Pod    string       // namespace/name, empty where the runtime does not say
	Bridge string       // the bridge that the link is a port of; empty for a routed one
	Addrs  []netip.Addr // of the pod behind a routed link
}

const (
	markBridge, markRouted = "bridge=", "routed="
	// mostAlias is how long an alias may be, bytes (IFALIASZ without its NUL).
	mostAlias = 255
)

// String is the alias. A name that is too long is cut: it is there for people.
func (m Mark) String() string {
	how := markBridge + m.Bridge
	if m.Bridge == "" {
		list := make([]string, len(m.Addrs))
		for i, a := range m.Addrs {
			list[i] = a.String()
		}
		how = markRouted + strings.Join(list, ",")
	}
	if m.Pod == "" {
		return how
	}
	return m.Pod[:min(len(m.Pod), max(0, mostAlias-1-len(how)))] + " " + how
}

// ParseMark reads an alias; ok is false for one that is no mark. What the plugin wrote before there were marks,
// a name and nothing else, is a port of PodBridge.
func ParseMark(alias string) (m Mark, ok bool) {
	pod, how, both := strings.Cut(alias, " ")
	if !both && (strings.HasPrefix(alias, markBridge) || strings.HasPrefix(alias, markRouted)) {
		pod, how = "", alias
	}
	m.Pod = pod
	if bridge, is := strings.CutPrefix(how, markBridge); is {
		m.Bridge = bridge
		return m, bridge != ""
	}
	if list, is := strings.CutPrefix(how, markRouted); is {
		for text := range strings.SplitSeq(list, ",") {
			a, err := netip.ParseAddr(text)
			if err != nil {
				return Mark{}, false
			}
			m.Addrs = append(m.Addrs, a)
		}
		return m, true
	}
	m.Bridge = PodBridge
	return m, how == "" && strings.Contains(pod, "/")
}
