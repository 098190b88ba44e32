package nftables

import (
	"crypto/sha256"
	"fmt"
	"net/netip"
	"strings"

	"github.com/braidnet/braid/internal/desired"
	"github.com/braidnet/braid/internal/desired/nft"
	"github.com/braidnet/braid/netagent/service"
)

// sourcesWord begins the names of chains that let some sources pass. There is one for each distinct list,
// however many frontends have it, and it goes with the last of them.
const sourcesWord = "sources-"

// sourcesName names the chain for a list by a digest of it.
func sourcesName(node bool, list []netip.Prefix) string {
	h := sha256.New()
	for _, p := range list {
		fmt.Fprintln(h, p)
	}
	return setFor(node, fmt.Sprintf("%s%x", sourcesWord, h.Sum(nil)[:8]))
}

// isSources reports whether a chain may be one for a list of sources.
func isSources(name string) bool {
	return strings.HasPrefix(strings.TrimPrefix(name, nodeWord), sourcesWord)
}

// filteredBy returns the chain with the sources of a frontend, false when all may use it.
func filteredBy(f *service.Frontend) (c desired.NFTChain, filtered bool) {
	if !f.Filtered || !known(f.Protocol) {
		return c, false
	}
	return sourcesChain(familyOf(f.Addr), f.Kind == service.NodePort, f.Sources), true
}

func sourcesChain(nf desired.NFTFamily, node bool, list []netip.Prefix) desired.NFTChain {
	f := families[nf]
	c := desired.NFTChain{Name: sourcesName(node, list)}
	for _, p := range list {
		if familyOf(p.Addr()) == nf {
			c.Rules = append(c.Rules, nft.Rule("welcome: "+p.String(), nft.Within(f.source(), p), nft.Goto(setFor(node, chainNoBackends))))
		}
	}
	c.Rules = append(c.Rules, nft.Rule("no others", nft.Drop()))
	return c
}
