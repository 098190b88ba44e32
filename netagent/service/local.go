package service

import (
	"net/netip"
	"slices"
	"strings"
)

// Local says which connections count as those of pods of this node (KEP-2450): pods keep their address
// on the way to a cluster IP, and with externalTrafficPolicy Local they reach every endpoint. The node's
// own connections never count, whatever address they come from. The zero value goes by the node's pod CIDRs.
type Local struct {
	Sources []netip.Prefix // in place of the node's pod CIDRs, sources in these ranges
	Link    string         // in place of sources, packets that come in by the device of this name
	Prefix  bool           // by every device whose name begins with Link
}

// PodSources are the sources that count as pods of this node; none when it is devices that count.
func (n *Net) PodSources() []netip.Prefix {
	switch {
	case n.Local.Link != "":
		return nil
	case len(n.Local.Sources) > 0:
		return n.Local.Sources
	}
	return n.LocalPods
}

// Matches reports whether packets that come in by a device count as those of pods of this node for that.
func (l *Local) Matches(link string) bool {
	if l.Prefix {
		return l.Link != "" && strings.HasPrefix(link, l.Link)
	}
	return link != "" && link == l.Link
}

func (l *Local) equal(o Local) bool {
	return l.Link == o.Link && l.Prefix == o.Prefix && slices.Equal(l.Sources, o.Sources)
}
