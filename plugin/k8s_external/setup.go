package k8s_external

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/fall"
	clog "github.com/coredns/coredns/plugin/pkg/log"
	"github.com/coredns/coredns/plugin/pkg/upstream"

	"github.com/braidnet/braid/plugin/kubernetes"
)

const pluginName = "k8s_external"

var log = clog.NewWithPlugin(pluginName)

func init() { plugin.Register(pluginName, setup) }

// config is one k8s_external stanza of a Corefile.
type config struct {
	file     string
	line     int
	zones    []string // normalised
	apex     string   // label of the names that a zone needs for itself
	ttl      uint32
	headless bool
	fall     fall.F
}

func setup(c *caddy.Controller) error {
	// CoreDNS uses the plugins of the first name of a server block for all.
	if c.ServerBlockKeyIndex > 0 {
		return nil
	}
	cfg, err := parse(c)
	if err != nil {
		return plugin.Error(pluginName, err)
	}
	e := &External{cfg: cfg, upstream: upstream.New()}
	server := dnsserver.GetConfig(c)
	// At the start, because kubernetes comes behind this plugin.
	c.OnStartup(func() error {
		k, ok := server.Handler("kubernetes").(*kubernetes.Kubernetes)
		if !ok {
			return plugin.Error(pluginName, fmt.Errorf("%s:%d - Error during parsing: there is no kubernetes plugin in this server block to take addresses from; add one", cfg.file, cfg.line))
		}
		e.cluster = k
		k.AnnounceExternal(server.Handler("transfer"), cfg.zones)
		return nil
	})
	server.AddPlugin(func(next plugin.Handler) plugin.Handler {
		e.Next = next
		return e
	})
	return nil
}

const maxTTL = 3600

func parse(c *caddy.Controller) (*config, error) {
	var cfg *config
	for c.Next() {
		if cfg != nil {
			log.Warningf("%s:%d: a second k8s_external in this server block; only this one is used", c.File(), c.Line())
		}
		cfg = &config{file: c.File(), line: c.Line(), apex: "dns", ttl: 5}
		args := c.RemainingArgs()
		for _, z := range args {
			if plugin.Host(z).NormalizeExact() == nil {
				return nil, c.Errf("zone: found %q, want a domain name or an address range such as 10.0.0.0/8", z)
			}
		}
		if cfg.zones = plugin.OriginsFromArgsOrServerBlock(args, c.ServerBlockKeys); len(cfg.zones) == 0 {
			return nil, c.Errf("zones: found none, want at least one, here or in front of the server block")
		}
		for c.NextBlock() {
			if err := cfg.option(c); err != nil {
				return nil, err
			}
		}
	}
	return cfg, nil
}

func (cfg *config) option(c *caddy.Controller) error {
	word, args := c.Val(), c.RemainingArgs()
	switch word {
	case "ttl":
		if len(args) == 0 {
			return c.Errf("ttl: found nothing, want a number of seconds from 0 to %d", maxTTL)
		}
		n, err := strconv.Atoi(args[0])
		if err != nil || n < 0 || n > maxTTL {
			return c.Errf("ttl: found %q, want a number of seconds from 0 to %d", args[0], maxTTL)
		}
		cfg.ttl = uint32(n)
	case "apex":
		if len(args) == 0 {
			return c.Errf("apex: found nothing, want a label such as dns")
		}
		cfg.apex = strings.ToLower(args[0])
	case "headless":
		cfg.headless = true
	case "fallthrough":
		for _, z := range args {
			if plugin.Host(z).NormalizeExact() == nil {
				return c.Errf("fallthrough: found %q, want zones", z)
			}
		}
		cfg.fall.SetZonesFromArgs(args)
	default:
		return c.Errf("unknown property %q; accepted: apex, fallthrough, headless, ttl", word)
	}
	return nil
}
