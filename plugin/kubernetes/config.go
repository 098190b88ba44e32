package kubernetes

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/plugin/pkg/fall"

	"github.com/braidnet/braid/internal/model"
	"github.com/braidnet/braid/internal/names"
	"github.com/braidnet/braid/plugin/kubernetes/stores"
)

// podMode says which pod names are answered.
type podMode string

const (
	podsDisabled podMode = "disabled" // none
	podsInsecure podMode = "insecure" // any address in a namespace that exists
	podsVerified podMode = "verified" // addresses of pods of the namespace
)

const (
	defaultTTL            = 5
	maxTTL                = 3600
	defaultStartupTimeout = 5 * time.Second
	defaultSelfCheck      = 10 * time.Minute
)

// config is one kubernetes stanza of a Corefile.
type config struct {
	file string
	line int

	zones          []string // normalised
	primary        string   // the first zone that is not a reverse zone: PTR records point into it
	sets           []string // those of the zones that are zones of a cluster set
	source         stores.Source
	namespaces     map[string]struct{} // empty = all
	pods           podMode
	view           names.View
	ttl            uint32
	fall           fall.F
	startupTimeout time.Duration
	zonal          bool
	nearest        bool
	explain        []netip.Prefix // clients that are told why; empty = none
	warnings       []string       // to be logged once, each with file:line
}

// foundError carries the word that is wrong; the stanza's reader adds what was wanted and where.
type foundError string

func (f foundError) Error() string { return fmt.Sprintf("found %q", string(f)) }

func found(word string) error { return foundError(word) }

// warn remembers a warning about the line that is being read.
func (c *config) warn(format string, args ...any) {
	c.warnings = append(c.warnings, fmt.Sprintf(format, args...))
}

// parse reads the kubernetes stanza of a server block.
func parse(c *caddy.Controller) (*config, error) {
	var out *config
	for c.Next() {
		if out != nil {
			return nil, c.Errf("a second kubernetes stanza in this server block; put its zones into the first")
		}
		var err error
		if out, err = parseStanza(c); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func parseStanza(c *caddy.Controller) (*config, error) {
	cfg := &config{
		file: c.File(), line: c.Line(),
		namespaces:     map[string]struct{}{},
		pods:           podsDisabled,
		ttl:            defaultTTL,
		startupTimeout: defaultStartupTimeout,
		source:         stores.Source{CheckEvery: defaultSelfCheck},
	}
	if err := cfg.setZones(c); err != nil {
		return nil, err
	}
	for c.NextBlock() {
		word, line := c.Val(), c.Line()
		opt, ok := options[word]
		if !ok {
			return nil, c.Errf("unknown property %q; accepted: %s", word, strings.Join(acceptedOptions(), ", "))
		}
		args := c.RemainingArgs()
		if len(args) < opt.min || (opt.max >= 0 && len(args) > opt.max) {
			return nil, c.Errf("%s: found %q, want %s", word, strings.Join(args, " "), opt.usage)
		}
		before := len(cfg.warnings)
		if err := opt.set(cfg, args); err != nil {
			return nil, c.Errf("%s: %v, want %s", word, err, opt.usage)
		}
		for i := before; i < len(cfg.warnings); i++ {
			cfg.warnings[i] = fmt.Sprintf("%s:%d: %s", c.File(), line, cfg.warnings[i])
		}
	}
	return cfg, cfg.check()
}

func (c *config) setZones(d *caddy.Controller) error {
	args := d.RemainingArgs()
	for _, z := range args {
		if plugin.Host(z).NormalizeExact() == nil {
			return d.Errf("zone: found %q, want a domain name or an address range such as 10.0.0.0/8", z)
		}
	}
	c.zones = plugin.OriginsFromArgsOrServerBlock(args, d.ServerBlockKeys)
	i := slices.IndexFunc(c.zones, func(z string) bool { return !IsReverseZone(z) })
	if i < 0 { // CoreDNS starts with in-addr.arpa alone, and so do we
		i = slices.IndexFunc(c.zones, func(z string) bool { return dnsutil.IsReverse(z) == 0 })
	}
	if i < 0 {
		return d.Errf("zones: found only reverse zones %q, want at least one forward zone such as cluster.local (non-reverse zone name must be used)", c.zones)
	}
	c.primary = c.zones[i]
	return nil
}

// check looks at what single options cannot see.
func (c *config) check() error {
	if err := c.checkTogether(); err != nil {
		return err
	}
	s := c.source
	if s.Manifests != "" && (s.Kubeconfig != "" || s.Endpoint != "") {
		return c.errorf("manifests %q and an API server (kubeconfig or endpoint) are both set; keep one", s.Manifests)
	}
	if s.Manifests != "" {
		if s.HeadlessOnly || s.QPS != 0 || s.Burst != 0 || s.MaxInflight != 0 {
			c.warnings = append(c.warnings, fmt.Sprintf("%s:%d: endpoints headless and apiserver_… have no effect with manifests; remove them", c.file, c.line))
		}
		c.source = stores.Source{Manifests: s.Manifests, Labels: s.Labels, NamespaceLabels: s.NamespaceLabels}
	}
	if s.Kubeconfig != "" && s.Endpoint != "" {
		c.warnings = append(c.warnings, fmt.Sprintf("%s:%d: kubeconfig wins over endpoint; remove one", c.file, c.line))
		c.source.Endpoint, c.source.CertFile, c.source.KeyFile, c.source.CAFile = "", "", "", ""
	}
	if c.source.Endpoint == "" && c.source.CertFile != "" {
		c.warnings = append(c.warnings, fmt.Sprintf("%s:%d: tls has no effect without endpoint; remove it", c.file, c.line))
		c.source.CertFile, c.source.KeyFile, c.source.CAFile = "", "", ""
	}
	return nil
}

// checkTogether refuses options that contradict each other.
func (c *config) checkTogether() error {
	for _, z := range c.sets {
		if !slices.Contains(c.zones, z) {
			return c.errorf("multicluster: found %q, want zones of this stanza: %s (is not authoritative for the multicluster zone)", z, strings.Join(c.zones, " "))
		}
	}
	headless := c.source.HeadlessOnly
	switch {
	case len(c.namespaces) > 0 && c.source.NamespaceLabels != "":
		return c.errorf("namespaces and namespace_labels cannot both be set; keep one")
	case c.zonal && c.view.NoEndpoints:
		return c.errorf("zonal requires endpoints; remove noendpoints or zonal")
	case headless && c.view.NoEndpoints:
		return c.errorf("endpoints headless and noendpoints are both set; keep one")
	case headless && c.view.IgnoreEmpty:
		return c.errorf("ignore empty_service needs the endpoints of every service; remove it or endpoints headless")
	case headless && len(c.sets) > 0:
		return c.errorf("multicluster needs the endpoints of every service; remove it or endpoints headless")
	}
	return nil
}

// errorf is an error about the stanza as a whole, in the form of the Corefile parser's own.
func (c *config) errorf(format string, args ...any) error {
	return fmt.Errorf("%s:%d - Error during parsing: %s", c.file, c.line, fmt.Sprintf(format, args...))
}

func acceptedOptions() []string {
	words := make([]string, 0, len(options))
	for w := range options {
		words = append(words, w)
	}
	slices.Sort(words)
	return words
}

// kinds are the objects this stanza needs, and no more: the watcher's permissions need not be wider.
// A folder is read as a whole anyway, and so shared by stanzas of all sorts.
func (c *config) kinds() []model.Kind {
	if c.source.Manifests != "" {
		return model.Kinds
	}
	kinds := []model.Kind{model.KindNamespace, model.KindService}
	if !c.view.NoEndpoints || len(c.sets) > 0 {
		kinds = append(kinds, model.KindEndpointSlice)
	}
	if c.pods == podsVerified {
		kinds = append(kinds, model.KindPod)
	}
	if len(c.sets) > 0 {
		kinds = append(kinds, model.KindServiceImport)
	}
	if c.nearest {
		kinds = append(kinds, model.KindNode)
	}
	return kinds
}
