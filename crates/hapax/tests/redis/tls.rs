//! TLS to one server, to a cluster and under Sentinels.

use hapax::store::{Begun, Store};
use hapax_servers::redis::{Certificates, RedisCluster, RedisConfig, RedisSentinels, RedisServer};

use crate::common::{begin, open, run, server};
use crate::errors::{refused, says};
use crate::{index, outages};

#[test]
fn tls_is_spoken_and_a_certificate_that_does_not_fit_is_refused() {
    let certificates = Certificates::of("DNS:localhost").unwrap();
    let redis = RedisServer::start(RedisConfig::new().tls(&certificates)).unwrap();
    let plain = server();
    run(async {
        let trusting = format!("{}?tls_ca={}", redis.url(), certificates.ca().display());
        let store = open(&trusting).await;
        assert!(matches!(store.begin(begin("k")).await.unwrap(), Begun::Started { .. }));
        says(&refused(&redis.url()).await, &["certificate", "tls_ca=FILE"]);
        says(&refused(&trusting.replace("localhost", "127.0.0.1")).await, &["certificate", "host name"]);
        says(&refused(&format!("{}?tls_ca=/no/such/file", redis.url())).await, &["/no/such/file", "cannot be read"]);
        says(&refused(&format!("rediss://127.0.0.1:{}", plain.port())).await, &["TLS"]);
        says(&refused(&redis.url().replace("rediss", "redis")).await, &["rediss:"]);
    });
}

#[test]
fn a_cluster_over_tls_moves_a_slot_while_it_is_used() {
    let certificates = Certificates::of("IP:127.0.0.1").unwrap();
    let cluster = RedisCluster::with_tls(&certificates).unwrap();
    let url = format!("{}?tls_ca={}", cluster.url(), certificates.ca().display());
    index::moves_a_slot_in_use(cluster, &url);
}

#[test]
fn a_failover_under_load_over_tls_goes_on_and_loses_only_what_the_replica_had_not_got() {
    let certificates = Certificates::of("IP:127.0.0.1").unwrap();
    let group = RedisSentinels::start(RedisConfig::new().tls(&certificates)).unwrap();
    let url = format!("{}?command_timeout=10s&tls_ca={}", group.url(), certificates.ca().display());
    outages::goes_on_after_a_failover(group, &url);
}
