package kubernetes

import (
	"fmt"
	"slices"
	"strconv"
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
)

// config is one kubernetes stanza of a Corefile.
type config struct {
	file string
	line int

	zones          []string // normalised
	primary        string   // the first zone that is not a reverse zone: PTR records point into it
	source         stores.Source
	namespaces     map[string]struct{} // empty = all
	pods           podMode
	view           names.View
	ttl            uint32
	fall           fall.F
	startupTimeout time.Duration
	warnings       []string // to be logged once, each with file:line
}

// option is a word of the stanza. usage is what the words behind it should have been.
type option struct {
	usage    string
	min, max int // number of arguments; max < 0 = any
	set      func(c *config, args []string) error
}

var options = map[string]option{
	"manifests": {"one path, or nothing behind an empty variable to use the API server", 1, 1, func(c *config, args []string) error {
		c.source.Manifests = args[0]
		return nil
	}},
	"kubeconfig": {"a file and optionally a context", 1, 2, func(c *config, args []string) error {
		c.source.Kubeconfig, c.source.Context = args[0], strings.Join(args[1:], "")
		return nil
	}},
	"endpoint": {"the URL of the API server", 1, -1, func(c *config, args []string) error {
		if len(args) > 1 {
			c.warn("endpoint takes one URL; only %q is used", args[0])
		}
		c.source.Endpoint = args[0]
		return nil
	}},
	"tls": {"three files: certificate, key, CA certificate", 3, 3, func(c *config, args []string) error {
		c.source.CertFile, c.source.KeyFile, c.source.CAFile = args[0], args[1], args[2]
		return nil
	}},
	"namespaces": {"one or more namespaces", 1, -1, func(c *config, args []string) error {
		for _, ns := range args {
			c.namespaces[ns] = struct{}{}
		}
		return nil
	}},
	"pods": {"disabled, insecure or verified", 1, 1, func(c *config, args []string) error {
		switch m := podMode(args[0]); m {
		case podsDisabled, podsInsecure, podsVerified:
			c.pods = m
			return nil
		}
		return found(args[0])
	}},
	"endpoint_pod_names": {"nothing", 0, 0, func(c *config, _ []string) error {
		c.view.PodNames = true
		return nil
	}},
	"ttl": {fmt.Sprintf("a number of seconds from 0 to %d", maxTTL), 1, 1, func(c *config, args []string) error {
		n, err := strconv.ParseUint(args[0], 10, 32)
		if err != nil || n > maxTTL {
			return found(args[0])
		}
		c.ttl = uint32(n)
		return nil
	}},
	"noendpoints": {"nothing", 0, 0, func(c *config, _ []string) error {
		c.view.NoEndpoints = true
		return nil
	}},
	"fallthrough": {"zones", 0, -1, func(c *config, args []string) error {
		for _, z := range args {
			if plugin.Host(z).NormalizeExact() == nil {
				return found(z)
			}
		}
		c.fall.SetZonesFromArgs(args)
		return nil
	}},
	"ignore": {"empty_service", 0, 1, func(c *config, args []string) error {
		if len(args) == 0 {
			c.warn("ignore does nothing without the word empty_service")
			return nil
		}
		if args[0] != "empty_service" {
			return found(args[0])
		}
		c.view.IgnoreEmpty = true
		return nil
	}},
	"startup_timeout": {"a duration such as 5s", 1, 1, func(c *config, args []string) error {
		d, err := time.ParseDuration(args[0])
		if err != nil || d < 0 {
			return found(args[0])
		}
		c.startupTimeout = d
		return nil
	}},
	// Words that Corefiles of old still carry. CoreDNS took them out; we let such files start.
	"upstream": {"", 0, -1, func(c *config, _ []string) error {
		c.warn("upstream has no effect: external names are resolved through this server itself; remove the line")
		return nil
	}},
	"resyncperiod": {"", 0, -1, func(c *config, _ []string) error {
		c.warn("resyncperiod has no effect: changes are watched; remove the line")
		return nil
	}},
	"transfer": {"", 0, -1, func(c *config, _ []string) error {
		c.warn("transfer has no effect inside kubernetes: use the transfer plugin in the server block; remove the line")
		return nil
	}},
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
	forward := func(z string) bool { return dnsutil.IsReverse(z) == 0 }
	i := slices.IndexFunc(c.zones, forward)
	if i < 0 {
		return d.Errf("zones: found only reverse zones %q, want at least one forward zone such as cluster.local (non-reverse zone name must be used)", c.zones)
	}
	c.primary = c.zones[i]
	return nil
}

// check looks at what single options cannot see.
func (c *config) check() error {
	s := c.source
	if s.Manifests != "" && (s.Kubeconfig != "" || s.Endpoint != "") {
		return c.errorf("manifests %q and an API server (kubeconfig or endpoint) are both set; keep one", s.Manifests)
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
	if !c.view.NoEndpoints {
		kinds = append(kinds, model.KindEndpointSlice)
	}
	if c.pods == podsVerified {
		kinds = append(kinds, model.KindPod)
	}
	return kinds
}
