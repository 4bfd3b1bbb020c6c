//! Signatures of tokens: HMAC (RFC 7518, section 3.2), by the library that also serves TLS.
//!
//! The crates that `jsonwebtoken` brings itself do RSA and curves too, which no token here is signed with.

use jsonwebtoken::{
    Algorithm, AlgorithmFamily,
    crypto::{CryptoProvider, JwtSigner, JwtVerifier, KeyUtils},
    errors::{ErrorKind, Result},
    signature::{Error, Signer, Verifier},
};
use ring::hmac::{self, HMAC_SHA256, HMAC_SHA384, HMAC_SHA512, Key};

static PROVIDER: CryptoProvider = CryptoProvider {
    signer_factory: |&algorithm, key| {
        let secret = of_family(key.family()).map(|()| key.as_bytes())?;
        Ok(Box::new(Hmac::new(algorithm, secret)?))
    },
    verifier_factory: |&algorithm, key| {
        let secret = of_family(key.family()).and_then(|()| key.try_get_as_bytes())?;
        Ok(Box::new(Hmac::new(algorithm, secret)?))
    },
    // No key comes as a JWK.
    key_utils: KeyUtils::new_unimplemented(),
};

/// Has `jsonwebtoken` sign and check here, in the whole process. Must be called before it does either, as
/// [`Verifier`](super::Verifier) and [`Issuer`](super::issuer::Issuer) do; once more does nothing.
pub fn install() {
    // An error says that it has been done.
    PROVIDER.install_default().unwrap_or_default();
}

fn of_family(family: AlgorithmFamily) -> Result<()> {
    match family {
        AlgorithmFamily::Hmac => Ok(()),
        _ => Err(ErrorKind::InvalidKeyFormat.into()),
    }
}

struct Hmac {
    algorithm: Algorithm,
    key: Key,
}

impl Hmac {
    fn new(algorithm: Algorithm, secret: &[u8]) -> Result<Self> {
        let hash = match algorithm {
            Algorithm::HS256 => HMAC_SHA256,
            Algorithm::HS384 => HMAC_SHA384,
            Algorithm::HS512 => HMAC_SHA512,
            _ => return Err(ErrorKind::InvalidAlgorithm.into()),
        };
        Ok(Self { algorithm, key: Key::new(hash, secret) })
    }
}

impl Signer<Vec<u8>> for Hmac {
    fn try_sign(&self, message: &[u8]) -> std::result::Result<Vec<u8>, Error> {
        Ok(hmac::sign(&self.key, message).as_ref().to_vec())
    }
}

impl Verifier<Vec<u8>> for Hmac {
    fn verify(&self, message: &[u8], signature: &Vec<u8>) -> std::result::Result<(), Error> {
        hmac::verify(&self.key, message, signature).map_err(|_wrong| Error::new())
    }
}

impl JwtSigner for Hmac {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

impl JwtVerifier for Hmac {
    fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{
        DecodingKey, EncodingKey,
        crypto::{sign, verify},
    };

    use super::*;

    /// RFC 4231, section 4.3.
    #[test]
    fn signatures_are_those_of_the_rfc() {
        install();
        let (secret, message) = (b"Jefe", b"what do ya want for nothing?");
        let expected = [
            (Algorithm::HS256, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
            (
                Algorithm::HS384,
                "af45d2e376484031617f78d2b58a6b1b9c7ef464f5a01b47e42ec3736322445e8e2240ca5e69e2c78b3239ecfab21649",
            ),
            (
                Algorithm::HS512,
                "164b7a7bfcf819e2e395fbe73b56e0a387bd64222e831fd610270cd7ea2505549758bf75c05a994a6d034f65f8f0e6fdcaeab\
                 1a34d4a6b4b636e070a38bce737",
            ),
        ];
        for (algorithm, hex) in expected {
            use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
            let signature = URL_SAFE_NO_PAD.encode(hex::decode(hex).unwrap());
            assert_eq!(sign(message, &EncodingKey::from_secret(secret), algorithm).unwrap(), signature);
            let key = DecodingKey::from_secret(secret);
            assert!(verify(&signature, message, &key, algorithm).unwrap(), "{algorithm:?}");
            assert!(!verify(&signature, b"what", &key, algorithm).unwrap(), "{algorithm:?} of another message");
            // 24 bytes of it.
            let cut = signature.get(..32).unwrap();
            assert!(!verify(cut, message, &key, algorithm).unwrap(), "{algorithm:?}, cut");
        }
    }

    #[test]
    fn another_family_is_refused() {
        install();
        let refused = sign(b"message", &EncodingKey::from_secret(b"secret"), Algorithm::RS256).unwrap_err();
        assert_eq!(refused.kind(), &ErrorKind::InvalidAlgorithm);
        let refused = sign(b"message", &EncodingKey::from_ec_der(b"key"), Algorithm::HS256).unwrap_err();
        assert_eq!(refused.kind(), &ErrorKind::InvalidKeyFormat);
    }
}
